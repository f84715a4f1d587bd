"""Nested state split into JSON and tensors. Splitting it again is quick while its tensors stay in their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..errors import StateError
from ..format.plan import Spec
from ..sharded.held import Held, held, is_sharded, local_of, locals_of, placement_of
from . import tensors, tree
from .marks import PerRank
from .tensors import lie_as, place_of


@dataclass(frozen=True, slots=True)
class Packed:
    """Nested state, split: `tree` is JSON that names tensors. `tensors` are the live tensors, not copies; each is there
    once, also if it has several names."""

    tree: Any
    tensors: Mapping[str, torch.Tensor]
    specs: Mapping[str, Spec]
    visited: Sequence[str] = ()
    """The name of each tensor met, in order. A tied tensor has the name of the earlier one that it is tied to."""
    marked: Mapping[str, PerRank] = field(default_factory=dict)
    """The values that are this rank's alone, by path. They are not in `tree`."""
    led: frozenset[str] = frozenset()
    """The tensors that each rank has its own of. Those of rank 0 are saved as the shared ones."""
    placed: Mapping[str, Held] = field(default_factory=dict)
    """Those of which this rank has a box: `tensors` and `specs` have the box."""

    @property
    def replicated(self) -> dict[str, Spec]:
        """Those that every rank has whole."""
        return {name: spec for name, spec in self.specs.items() if name not in self.placed}


Declared = Callable[[str, torch.Tensor], "Held | None"]
"""(path, tensor) -> what this rank holds of a global tensor, if the plain tensor is a slice of one."""


def _none_declared(path: str, tensor: torch.Tensor) -> Held | None:
    return None


def pack(state: Any, prefix: str = "", slices: Declared = _none_declared) -> Packed:
    """`state`, split. StateError names the path of a value that a checkpoint cannot hold. With a `prefix` it is this
    rank's alone, and has no sharded tensors. `slices` tells which plain tensors are slices of global ones."""
    found: dict[str, torch.Tensor] = {}
    specs: dict[str, Spec] = {}
    names: dict[tuple[Any, ...], str] = {}
    visited: list[str] = []
    marked: dict[str, PerRank] = {}
    placed: dict[str, Held] = {}

    def name_of(value: Any, path: str) -> str | None:
        if isinstance(value, PerRank):
            return _mark(marked, value, path)
        if not isinstance(value, torch.Tensor):
            return None
        holding = None
        if not prefix:
            holding = held(value, path) if is_sharded(value) else slices(path, value)
            value = local_of(value)
        spec = tensors.spec_of(value, path)
        # Tied weights are one tensor with two names. `found` keeps tensors alive, so an address means one tensor only.
        identity = (value.device, _address(value), spec, value.stride(), value.is_conj(), value.is_neg())
        if (spec.count or holding is not None) and identity in names:
            visited.append(names[identity])
            return names[identity]
        name = base = path.replace("@", "%40")
        while name in found:
            name = f"{base}%{len(found)}"
        names[identity], found[name], specs[name] = name, value.detach(), spec
        if holding is not None:
            placed[name] = holding
        visited.append(name)
        return name

    return Packed(tree.encode(state, prefix, name_of), found, specs, visited, marked, placed=placed)


def _address(tensor: torch.Tensor) -> tuple[int, ...]:
    """Where its values lie. An empty part of a sharded tensor has no address: its memory says which tensor it is."""
    if tensor.numel():
        return (tensor.data_ptr(),)
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())


def _mark(marked: dict[str, PerRank], value: PerRank, path: str) -> str:
    if path in marked:
        raise StateError(
            f"two PerRank values have the path {path} (a key with a /, or 1 beside '1'): rename one of them"
        )
    marked[path] = value
    return path


Steadiness = Callable[[str, torch.Tensor], bool]
Led = Callable[[Mapping[str, Spec]], frozenset[str]]


class _Moved(Exception):
    """A tensor has another address, or is another one."""


@dataclass(frozen=True, slots=True)
class _Visit:
    """A tensor met while packing. `address` is None if the tensor may be another one each time."""

    path: str
    name: str
    dtype: torch.dtype
    shape: torch.Size
    address: tuple[Any, ...] | None
    placement: tuple[Any, ...] | None


@dataclass(slots=True)
class _Block:
    """A dict that holds only tensors, or dicts of them. Most of a state is like this; it is compared, not encoded
    again. `state` is the dict, the newest that was found to be as it was."""

    state: Any
    keys: list[Any]
    names: list[str]
    steady: list[bool]
    identities: list[tuple[Any, ...]]
    local: list[torch.Tensor]
    tensors: dict[str, torch.Tensor]
    encoded: Any

    def take(self, state: Any, found: tuple[list[Any], list[torch.Tensor]] | None) -> None:
        """`state`, in which `found` is, takes its place. _Moved if it has other tensors."""
        if found is None or found[0] != self.keys:
            raise _Moved
        local = locals_of(found[1])
        if local is found[1] and all(self.steady):
            moved = not lie_as(local, self.local, self.identities)
        else:
            moved = _identities(found[1], local, self.steady) != self.identities
        if moved:
            raise _Moved
        tensors = dict(zip(self.names, local, strict=True))
        # Tied tensors have one name, so they must still be tied. Steady ones are where they were.
        for name, tensor, steady in zip(self.names, local, self.steady, strict=True) if not all(self.steady) else ():
            if not steady and tensors[name] is not tensor and place_of(tensors[name]) != place_of(tensor):
                raise _Moved
        self.state, self.local, self.tensors = state, local, tensors


def _identities(values: list[torch.Tensor], local: list[torch.Tensor], steady: list[bool]) -> list[tuple[Any, ...]]:
    """Of a steady tensor its place; of any other its type and shape."""
    found = [place_of(t) if still else (t.dtype, t.shape) for t, still in zip(local, steady, strict=True)]
    if local is values:
        return found
    return [(*one, placement_of(value)) for one, value in zip(found, values, strict=True)]


def _block_paths(state: Any) -> list[tuple[str, ...]]:
    """Where in `state` a block may be: the model, and the states of each optimizer."""
    parts = state if isinstance(state, dict) else {}
    optimizers = [part for part in parts if isinstance(part, str) and part.partition(".")[0] == "optimizer"]
    return [("model",), *((part, "state") for part in optimizers)]


def _at(state: Any, path: tuple[str, ...]) -> Any:
    """What is at `path`; None if nothing is."""
    for key in path:
        state = state.get(key) if isinstance(state, dict) else None
    return state


def _tensors_in(state: Any) -> tuple[list[Any], list[torch.Tensor]] | None:
    """(keys, tensors) of a dict. None if it holds other things than tensors and dicts of them."""
    if not isinstance(state, dict):
        return None
    keys: list[Any] = []
    values: list[torch.Tensor] = []
    for key, value in state.items():
        for name, leaf in value.items() if type(value) is dict else ((None, value),):
            if not isinstance(leaf, torch.Tensor):
                return None
            keys.append((key, name))
            values.append(leaf)
    return keys, values


def _without(state: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """`state` with `value` at `path`. The dicts on that path are copied."""
    head, *rest = path
    return {**state, head: _without(state[head], tuple(rest), value) if rest else value}


class Packer:
    """pack() with a memory: `specs` and `steady` of the result stay the same objects as long as no tensor has moved.

    `steadiness()` returns a function of a path and a tensor: whether the tensor keeps its place, and changes only when
    the optimizer steps. `led` chooses the tensors that each rank has its own of."""

    def __init__(
        self,
        steadiness: Callable[[], Steadiness],
        led: Led = lambda specs: frozenset(),
        slices: Declared = _none_declared,
        known: Callable[[], Any] = lambda: None,
    ) -> None:
        """`known` returns the part of the state that holds the same tensors as long as it is the same dict."""
        self._steadiness, self._led, self._slices, self._known = steadiness, led, slices, known
        self._visits: list[_Visit] = []
        self._blocks: dict[tuple[str, ...], _Block] = {}
        self._last: Packed | None = None
        self.steady: frozenset[str] = frozenset()

    def __call__(self, state: Any) -> Packed:
        """`state`, split as pack() splits it."""
        if self._last is not None:
            try:
                return self._again(state, self._last)
            except _Moved:
                pass
        return self._afresh(state)

    def _afresh(self, state: Any) -> Packed:
        packed = pack(state, slices=self._slices)
        is_steady = self._steadiness()
        self._visits = []

        def visit(value: Any, path: str) -> str | None:
            if isinstance(value, PerRank):
                return path
            if not isinstance(value, torch.Tensor):
                return None
            name = next(named)
            local = local_of(value)
            address = place_of(local) if is_steady(path, local) else None
            self._visits.append(_Visit(path, name, local.dtype, local.shape, address, placement_of(value)))
            return name

        named = iter(packed.visited)
        tree.encode(state, "", visit)
        self.steady = frozenset(v.name for v in self._visits if v.address is not None)
        self._blocks = {}
        for path in _block_paths(state):
            self._set_apart(path, state, packed.tree)
        packed = replace(packed, led=self._led(packed.replicated))
        # Kept alive, so that an address still means one tensor only.
        self._last = packed
        return packed

    def forget(self) -> None:
        """The next state is split anew, also if no tensor has moved."""
        self._last = None

    def _set_apart(self, path: tuple[str, ...], state: Any, encoded: Any) -> None:
        state = _at(state, path)
        found, encoded = _tensors_in(state), _at(encoded, path)
        inside = [v for v in self._visits if v.path.startswith("/".join(path) + "/")]
        if not found or encoded is None or len(inside) != len(found[1]):
            return
        met = {id(v) for v in inside}
        self._visits = [v for v in self._visits if id(v) not in met]
        steady, local = [v.address is not None for v in inside], locals_of(found[1])
        names = [v.name for v in inside]
        identities, tensors = _identities(found[1], local, steady), dict(zip(names, local, strict=True))
        self._blocks[path] = _Block(state, found[0], names, steady, identities, local, tensors, encoded)

    def _again(self, state: Any, last: Packed) -> Packed:
        found: dict[str, torch.Tensor] = {}
        visits = iter(self._visits)
        marked: dict[str, PerRank] = {}

        def name_of(value: Any, path: str) -> str | None:
            if isinstance(value, PerRank):
                return _mark(marked, value, path)
            if not isinstance(value, torch.Tensor):
                return None
            seen = next(visits, None)
            if seen is None or seen.placement != placement_of(value):
                raise _Moved
            value = local_of(value)
            if seen.path != path or value.dtype != seen.dtype or value.shape != seen.shape:
                raise _Moved
            if seen.address is not None and place_of(value) != seen.address:
                raise _Moved
            # Tied tensors have one name, so they must still be tied.
            if found.setdefault(seen.name, value) is not value and found[seen.name].data_ptr() != value.data_ptr():
                raise _Moved
            return seen.name

        for path, block in self._blocks.items():
            inside = _at(state, path)
            if not (block.state is inside is self._known()):
                block.take(inside, _tensors_in(inside))
            found.update(block.tensors)
            state = _without(state, path, None)
        encoded = tree.encode(state, "", name_of)
        if next(visits, None) is not None:
            raise _Moved
        for path, block in self._blocks.items():
            encoded = _without(encoded, path, block.encoded)
        return Packed(encoded, found, last.specs, last.visited, marked, last.led, last.placed)
