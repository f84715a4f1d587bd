"""Nested state taken apart into JSON and tensors; and taken apart again, quickly, while its tensors stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.checkpoint import tensors, tree
from trainer.checkpoint.plan import Spec


@dataclass(frozen=True, slots=True)
class Packed:
    """Nested state taken apart: `tree` is JSON that names tensors; `tensors` are the live ones, not copies, each once
    however often it is named."""

    tree: Any
    tensors: Mapping[str, torch.Tensor]
    specs: Mapping[str, Spec]
    visited: Sequence[str] = ()
    """The name of each tensor met, in order; one that is tied to an earlier one has its name."""


def pack(state: Any, prefix: str = "") -> Packed:
    """`state` taken apart. StateError names the path of what a checkpoint cannot hold."""
    found: dict[str, torch.Tensor] = {}
    specs: dict[str, Spec] = {}
    names: dict[tuple[Any, ...], str] = {}
    visited: list[str] = []

    def name_of(value: Any, path: str) -> str | None:
        if not isinstance(value, torch.Tensor):
            return None
        spec = tensors.spec_of(value, path)
        # Tied weights are one tensor under two names. `found` keeps each alive, so an address means one tensor only.
        identity = (value.device, value.data_ptr(), spec, value.stride(), value.is_conj(), value.is_neg())
        if spec.count and identity in names:
            visited.append(names[identity])
            return names[identity]
        name = base = path.replace("@", "%40")
        while name in found:
            name = f"{base}%{len(found)}"
        names[identity], found[name], specs[name] = name, value.detach(), spec
        visited.append(name)
        return name

    return Packed(tree.encode(state, prefix, name_of), found, specs, visited)


Steadiness = Callable[[str, torch.Tensor], bool]


class _Moved(Exception):
    """A tensor is not where it was, or not the same one."""


@dataclass(frozen=True, slots=True)
class _Visit:
    """A tensor met while packing. `address` is None where the tensor may be another one each time."""

    path: str
    name: str
    dtype: torch.dtype
    shape: torch.Size
    address: tuple[Any, ...] | None


def _address(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.stride(), tensor.is_conj()


class Packer:
    """pack(), remembered: `specs` and `steady` of the result are the very same objects as long as nothing has moved.

    `steadiness()` gives what says, of a path and a tensor, whether it keeps its place and changes only when the optimizer
    steps."""

    def __init__(self, steadiness: Callable[[], Steadiness]) -> None:
        self._steadiness = steadiness
        self._visits: list[_Visit] = []
        self._last: Packed | None = None
        self.steady: frozenset[str] = frozenset()

    def __call__(self, state: Any) -> Packed:
        """`state` taken apart, as pack() does it."""
        if self._last is not None:
            try:
                return self._again(state, self._last)
            except _Moved:
                pass
        return self._afresh(state)

    def _afresh(self, state: Any) -> Packed:
        packed = pack(state)
        is_steady = self._steadiness()
        self._visits = []

        def visit(value: Any, path: str) -> str | None:
            if not isinstance(value, torch.Tensor):
                return None
            name = next(named)
            address = _address(value) if is_steady(path, value) else None
            self._visits.append(_Visit(path, name, value.dtype, value.shape, address))
            return name

        named = iter(packed.visited)
        tree.encode(state, "", visit)
        self.steady = frozenset(v.name for v in self._visits if v.address is not None)
        # Kept alive, so that an address goes on to mean one tensor only.
        self._last = packed
        return packed

    def _again(self, state: Any, last: Packed) -> Packed:
        found: dict[str, torch.Tensor] = {}
        visits = iter(self._visits)

        def name_of(value: Any, path: str) -> str | None:
            if not isinstance(value, torch.Tensor):
                return None
            seen = next(visits, None)
            if seen is None or seen.path != path or value.dtype != seen.dtype or value.shape != seen.shape:
                raise _Moved
            if seen.address is not None and _address(value) != seen.address:
                raise _Moved
            # Tied tensors have one name, and must be tied still.
            if found.setdefault(seen.name, value) is not value and found[seen.name].data_ptr() != value.data_ptr():
                raise _Moved
            return seen.name

        encoded = tree.encode(state, "", name_of)
        if next(visits, None) is not None:
            raise _Moved
        return Packed(encoded, found, last.specs, last.visited)
