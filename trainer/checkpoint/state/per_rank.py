"""The state that each rank has of its own: marked values, the state of `data`, and small buffers of the model.

    capture    marked values leave the shared state; a reference stays in their place
    restore    the same number of ranks: each rank has its own back. Another number: resharded, or afresh, or refused

Each rank's batches make its own values in a buffer of a module (BatchNorm's averages). Rank 0 writes its buffers with
the shared state, for new ranks and for export. Each other rank writes its own buffers beside.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from ..errors import CheckpointMismatch
from ..format.plan import Spec
from ..sharded.parts import apart, together
from .marks import PerRank, Reference
from .tensors import as_saved
from .values import samples
from .values.records import inside, replaced

OWN = ("data", "gradients")
"""The parts that are each rank's own."""
_OF_STAGES = ("model", "optimizer", "scheduler", "scaler")
"""The parts that may be each rank's own, in a pipeline (see stages)."""
_HOLDS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "data": lambda own: "data" in own,
    "gradients": lambda own: bool(own.get("gradients")),
}
"""Whether there is a state of that part that would have to move to other ranks."""
_HOW = {
    "data": "give the object a method reshard(states, rank, world_size) that returns the state of a rank",
    "gradients": "go on with as many ranks, or from a checkpoint that was saved after optimizer.step() and zero_grad()",
    "a marked value": "mark it as PerRank(value, reshard=function), where function(values, rank, world_size) returns a "
    "value",
}
OnResize = Literal["refuse", "reset"]

_SMALL_BUFFER = 256 << 10
"""Buffers up to this many bytes are stored for each rank. A larger one (a mask, an average of all weights) is stored
only once it was seen to differ."""

_ADVICE = 'or make the Checkpointer with on_resize="reset", which begins it afresh'


class Parts(dict[str, Any]):
    """The parts of a checkpoint, by name. `own`: those that are each rank's own beside those in OWN."""

    own: frozenset[str] = frozenset()


def own_names(parts: Mapping[str, Any]) -> list[str]:
    """The names of the parts that are each rank's own."""
    return [name for name in parts if name in OWN or name in getattr(parts, "own", ())]


class Loader:
    """A StatefulDataLoader of torchdata, as the part `data`. By itself it makes its iterator after the restore. That
    draws from a generator, and without workers it leaves the loader's own one in another state than it had."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def state_dict(self) -> dict[str, Any]:
        # The first call may make the iterator, which draws: the generator comes after it.
        state, generator = self._loader.state_dict(), self._loader.generator
        return {"loader": state, "drawn": None if generator is None else generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state.keys() != {"loader", "drawn"}:  # as it was stored at first
            self._loader.load_state_dict(state)
            return
        self._loader.load_state_dict(state["loader"])
        self._loader.state_dict()  # the iterator is made now; the generators of this process are put back after it
        if state["drawn"] is not None and self._loader.generator is not None:
            self._loader.generator.set_state(state["drawn"])


def as_loader(data: Any) -> Any:
    """`data`, or a Loader around it. StateError if its samples would not be exact."""
    samples.check(data)
    kinds = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(data).__mro__)
    known = ("torchdata", "StatefulDataLoader") in kinds
    return Loader(data) if known and not hasattr(data, "reshard") else data


class Saved(Protocol):
    """The fields of a loaded checkpoint that are needed here."""

    @property
    def shared(self) -> dict[str, Any]: ...
    @property
    def own(self) -> dict[str, Any] | None: ...
    @property
    def everyone(self) -> Sequence[dict[str, Any]] | None: ...


def _is_of_stage(name: str) -> bool:
    return name.partition(".")[0] in _OF_STAGES


def own_state(
    parts: Mapping[str, Any], marked: Mapping[str, PerRank], buffers: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """The state of this rank alone, without its generators."""
    found = {name: parts[name].state_dict() for name in own_names(parts)}
    found = {name: apart(value, name) if _is_of_stage(name) else value for name, value in found.items()}
    state: dict[str, Any] = {name: dict(v) if type(v) is OrderedDict else v for name, v in found.items()}
    if marked:
        state["per_rank"] = {path: mark.value for path, mark in marked.items()}
    if buffers:
        state["buffers"] = dict(buffers)
    return state


def buffers_of(model: Any, specs: Mapping[str, Spec], differing: frozenset[str]) -> frozenset[str]:
    """The names of the tensors that are stored for each rank: small buffers of `model`, and those in `differing`."""
    if not isinstance(model, nn.Module):
        return frozenset()
    names = (f"model/{name}".replace("@", "%40") for name in map(as_saved, dict(model.named_buffers())))
    return frozenset(
        name for name in names if name in specs and (specs[name].bytes <= _SMALL_BUFFER or name in differing)
    )


def _references(value: Any) -> Iterator[Reference]:
    if isinstance(value, Reference):
        yield value
    for _, inner in inside(value):
        yield from _references(inner)


def with_values(value: Any, values: Mapping[str, Any]) -> Any:
    """`value` with this rank's `values`, by path, in their places; None for one that is not there."""
    if isinstance(value, Reference):
        return values.get(value.path)
    return replaced(value, lambda inner: with_values(inner, values))


@dataclass(frozen=True, slots=True)
class Settlement:
    """`state` is the shared state with this rank's own values in it. `afresh`: parts that keep their present state.
    `notices` tell what was done because of another number of ranks."""

    state: dict[str, Any]
    afresh: frozenset[str] = frozenset()
    notices: tuple[str, ...] = ()


class Resize:
    """The move of a saved state to rank `rank` of `world_size`. `was` is the number of ranks that saved it."""

    def __init__(self, rank: int, world_size: int, was: int, on_resize: OnResize, where: str) -> None:
        self._rank, self._world_size, self._was = rank, world_size, was
        self._on_resize, self._where = on_resize, where

    def settle(self, saved: Saved, parts: Mapping[str, Any], marked: Mapping[str, PerRank]) -> Settlement:
        """The state that this rank resumes from. `parts` and `marked` are the live ones; they are not changed.
        CheckpointMismatch if a value may not move to another number of ranks."""
        own, state = saved.own or {}, dict(saved.shared)
        state.update(self._with_buffers(state, own))
        self._check_stages(saved, parts)
        if self._was == self._world_size:
            names = [name for name in (*OWN, *own_names(parts)) if name in own]
            state.update({n: together(own[n], parts[n], n) if _is_of_stage(n) else own[n] for n in names})
            values = own.get("per_rank") or {}
            return Settlement({key: with_values(value, values) for key, value in state.items()})
        everyone = list(saved.everyone or ())
        notices: list[str] = []
        afresh: set[str] = set()
        for name in (name for name in OWN if name in parts and any(map(_HOLDS[name], everyone))):
            states = [each.get(name) for each in everyone]
            moved = self._moved(name, states, getattr(parts[name], "reshard", None), notices)
            state[name] = moved[0] if moved else None
            afresh |= set() if moved else {name}
        values = {}
        for path in sorted({ref.path for value in state.values() for ref in _references(value)}):
            mark = marked.get(path)
            states = [(each.get("per_rank") or {}).get(path) for each in everyone]
            found = self._moved(path, states, mark.reshard if mark else None, notices)
            values[path] = found[0] if found else mark.value if mark else None
        return Settlement(
            {key: with_values(value, values) for key, value in state.items()}, frozenset(afresh), tuple(notices)
        )

    def _check_stages(self, saved: Saved, parts: Mapping[str, Any]) -> None:
        """CheckpointMismatch unless the stages of a pipeline, if it holds any, are of this many ranks, and of the same
        parts."""
        kept = saved.everyone if self._was != self._world_size else [saved.own or {}]
        stored = {name for own in kept or () for name in own if _is_of_stage(name)}
        here = {name for name in own_names(parts) if _is_of_stage(name)}
        if self._was != self._world_size and (part := min(stored | here, default=None)):
            raise CheckpointMismatch(
                f"{self._where} is of {self._was} ranks, and there are {self._world_size} now: the {part} is each "
                "rank's own (a pipeline's stage), and cannot move to another number of ranks; go on with as many"
            )
        for name in sorted(here - stored if stored or saved.shared.keys() & here else ()):
            raise CheckpointMismatch(f"{self._where} has one {name} for all ranks, and here each rank has its own")
        for name in sorted((stored - here) & parts.keys()):
            raise CheckpointMismatch(f"{self._where} has a {name} of each rank, and here it is one for all ranks")

    def _with_buffers(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        model, mine = state.get("model"), own.get("buffers")
        if not isinstance(model, dict) or not isinstance(mine, dict):
            return {}
        return {"model": {**model, **{name: value for name, value in mine.items() if name in model}}}

    def _moved(
        self, what: str, states: list[Any], reshard: Callable[..., Any] | None, notices: list[str]
    ) -> tuple[Any] | None:
        """The state of this rank, made from the states of all ranks that saved. None if it begins afresh."""
        change = f"{self._where} is of {self._was} ranks, and there are {self._world_size} now"
        if reshard is not None:
            notices.append(f"{change}: {what} was resharded")
            return (reshard(states, self._rank, self._world_size),)
        if self._on_resize == "reset":
            notices.append(f"{change}: {what} begins afresh on each rank")
            return None
        how = _HOW.get(what, _HOW["a marked value"])
        raise CheckpointMismatch(f"{change}: {what} is each rank's own; {how}, {_ADVICE}")
