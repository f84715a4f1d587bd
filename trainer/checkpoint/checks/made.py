"""The buffers of a model as its program makes them, and those that grow while it trains.

Ranges that a quantized model observes, queues of keys, caches: a buffer may have another shape after some steps. A
program that is started again makes it as it was at first, and its state does not fit. Whether it grew, or the program
is another one now, is told by a digest of the types and shapes that all buffers had when the program had made them: if
that is the same in the checkpoint and here, what differs in shape has grown, and is made as large as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import xxhash
from torch import nn

from ...rundir.files.codec import encode
from ..sharded.held import is_sharded
from ..state.tensors import as_saved


class Made:
    """A part of a checkpoint: a digest of the persistent buffers of `model`, as they are now."""

    def __init__(self, model: Any) -> None:
        self._model = model if isinstance(model, nn.Module) else None
        found = [[name, str(value.dtype), list(value.shape)] for name, value in self._buffers()]
        self._digest = xxhash.xxh3_64_hexdigest(encode(sorted(found))) if found else ""

    def state_dict(self) -> dict[str, str]:
        return {"buffers": self._digest} if self._digest else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing: the digest says how the model's state is to be read."""

    def grown(self, state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The buffers that have another shape in `state`, which is of a program that made them as here; by name."""
        model, made = state.get("model"), state.get("made")
        if not isinstance(model, dict) or not isinstance(made, dict) or made.get("buffers") != self._digest:
            return {}
        return {name: live for name, live in self._buffers() if _is_another(live, model.get(name))}

    def grow(self, state: Mapping[str, Any]) -> None:
        """They have the shapes that they have in `state`, and any values. The tensors stay the same objects."""
        for name, live in self.grown(state).items():
            live.data = live.new_empty(state["model"][name].shape)

    def _buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        for place, module in self._model.named_modules() if self._model is not None else ():
            for name, value in module._buffers.items():
                if value is not None and name not in module._non_persistent_buffers_set:
                    yield as_saved(f"{place}.{name}" if place else name), value


def _is_another(live: torch.Tensor, stored: Any) -> bool:
    alike = isinstance(stored, torch.Tensor) and stored.dtype == live.dtype and not is_sharded(live)
    return alike and not is_sharded(stored) and stored.shape != live.shape
