"""Buffers that grow while a model trains: they come back as large as they were, if the program is the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.checkpoint import Checkpointer, CheckpointMismatch


class _Queue(nn.Module):
    def __init__(self, rows: int, large: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(rows, 4))
        self.register_buffer("all", torch.zeros(large, 1 << 20))

    def forward(self, x: torch.Tensor) -> Any:
        self.seen = torch.cat([self.seen, x])
        return self.layer(x)


def _trained(folder: Path, rows: int = 0) -> _Queue:
    """A model of which step 1 is saved, after its buffer has grown."""
    model = _Queue(rows)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ckpt = Checkpointer(model=model, optimizer=optimizer, directory=folder, every=1)
    assert ckpt.restore() == 0
    model(torch.arange(12.0).reshape(3, 4)).sum().backward()
    optimizer.step()
    model.all = torch.ones(1, 1 << 20)  # so large that it is read straight into its place, if it may be
    optimizer.zero_grad()
    ckpt.step(1)
    ckpt.close()
    return model


def _state(model: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


def test_it_is_as_large_as_it_was(tmp_path: Path) -> None:
    """And the tensor is the same object, for whoever holds it."""
    before, model = _trained(tmp_path), _Queue(0)
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.1), model.seen
    ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path, every=1)
    assert ckpt.restore() == 1
    assert _state(model) == _state(before)
    assert model.seen is seen and seen.shape == (3, 4)
    # What it saves now says the same: the program has made it empty.
    model(torch.ones(1, 4))
    ckpt.step(2)
    ckpt.close()
    other = _Queue(0)
    assert Checkpointer.load(tmp_path, model=other).step == 2
    assert _state(other) == _state(model)


def test_another_program_is_a_mismatch(tmp_path: Path) -> None:
    """It makes the buffer in another size: what it has is meant, and nothing is changed."""
    _trained(tmp_path)
    model = _Queue(2)
    before = _state(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path, every=1)
    with pytest.raises(CheckpointMismatch, match=r"seen is \[3, 4\] float32 in the checkpoint and \[2, 4\]"):
        ckpt.restore()
    ckpt._stop.close()
    assert _state(model) == before
