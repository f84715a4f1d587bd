"""pack() with a memory, for a small state that is made anew for each snapshot: that of a rank's generators.

Such a state seldom changes but in the values of its tensors. Then to compare is quicker than to split it again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .packing import Packed, pack

_PLAIN = (str, int, bool, type(None))


class Repacker:
    """In place of pack(). While only the values of tensors differ from those of the call before, `tree` and `specs` of
    the result stay the same objects."""

    def __init__(self) -> None:
        self._outline: Any = None
        """All of the last state but its tensors' values; None if it must be split again."""
        self._last = Packed({}, {}, {})

    def __call__(self, state: Any, prefix: str = "") -> Packed:
        """pack(state, prefix), with the same errors."""
        found: list[torch.Tensor] = []
        try:
            outline = prefix, _outline(state, found)
        except TypeError:
            return pack(state, prefix)
        if outline == self._outline:
            tensors = dict(zip(self._last.tensors, (tensor.detach() for tensor in found), strict=True))
            return replace(self._last, tensors=tensors)
        self._last = packed = pack(state, prefix)
        # Tied tensors have one name; the next state may not tie them.
        self._outline = outline if len(packed.tensors) == len(found) else None
        return packed


def _outline(value: Any, found: list[torch.Tensor]) -> Any:
    """What tells `value` from any that pack() would split in another way; its tensors are added to `found`. TypeError
    if it holds anything but dicts, tensors and plain values."""
    kind = type(value)
    if kind is dict:
        return [_key(key) for key in value], [_outline(inner, found) for inner in value.values()]
    if kind in _PLAIN:
        return kind, value
    if kind is float:
        return kind, value.hex()  # 0.0 equals -0.0
    if kind is not torch.Tensor:
        raise TypeError(kind)
    found.append(value)
    return value.dtype, value.shape, value.layout


def _key(key: Any) -> str:
    if type(key) is not str:
        raise TypeError(type(key))
    return key
