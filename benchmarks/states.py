"""States of a given size for the benchmarks, and snapshots of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.checkpoint.memory.memory import Memory, Place


def model_of(mb: float, parameters: int = 24) -> nn.Module:
    """A model whose parameters, with AdamW's state, are about `mb` MB in float32: `parameters` equal matrices."""
    elements = int(mb * 2**20 / 12 / parameters)
    side = max(1, int(elements**0.5))
    return nn.ParameterList(nn.Parameter(torch.randn(side, elements // side) * 0.02) for _ in range(parameters))  # type: ignore[return-value]


def stepped(model: nn.Module) -> torch.optim.Optimizer:
    """Its AdamW after one step, so that all of its state is there."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def nested(mb: float) -> dict[str, Any]:
    """Model and optimizer state as one dict."""
    model = model_of(mb)
    return {"model": model.state_dict(), "optimizer": stepped(model).state_dict()}


class Held:
    """State that is as it is."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = state


def snapshot_of(state: dict[str, Any], segment: Path, ranks: int, step: int = 1) -> None:
    """All ranks' snapshot of `state` in `segment`."""
    parts = {name: Held(value) for name, value in state.items()}
    for rank in range(ranks):
        memory = Memory(Place(segment, rank, ranks, 0, None), parts)
        memory.take(step, {})
        memory.close()
        assert memory.problem is None
