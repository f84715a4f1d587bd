"""A checkpoint or snapshot, put together in memory: of each tensor the box that this rank needs, and no more.

the box that is needed   meets the boxes that are stored  ->  read straight into its place, if its bytes lie so
                                                          ->  else read aside, and copied row by row
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from ..errors import Damaged, Misfit, StateError, Unreadable
from ..format import boxes
from ..format.boxes import Box
from ..format.manifest import Manifest, Piece, StoredTensor, rank_of, shard_name
from ..format.plan import Spec
from ..format.shard import Entry, Sink, Take, misfit
from ..state import tensors, tree

Read = Callable[[str, Sink], dict[str, str]]
"""Reads a file of a checkpoint into memory that the sink gives, and returns its metadata."""


class Place(Protocol):
    """What this rank has of a tensor."""

    @property
    def box(self) -> Box: ...

    def made(self, local: torch.Tensor) -> torch.Tensor:
        """The tensor that a part takes, of which this rank has `local`."""
        ...


Places = Callable[[Manifest], Mapping[str, Place]]
"""The places of the tensors of a manifest. This rank has the whole of those that have none."""


def NO_PLACES(manifest: Manifest) -> Mapping[str, Place]:
    """This rank has the whole of every tensor."""
    return {}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint in memory, every byte as written. `own` is None for a rank that did not exist when it was saved."""

    name: str
    manifest: Manifest
    shared: dict[str, Any]
    own: dict[str, Any] | None
    source: Literal["disk", "memory"] = "disk"
    everyone: tuple[dict[str, Any], ...] | None = None
    """What each rank that saved has of its own. Only if that is another number of ranks than was said to be here."""

    def where(self, directory: Path) -> str:
        """It, for people. `directory` holds the checkpoints."""
        return self.name if self.source == "memory" else f"checkpoint {directory / self.name}"


Lent = Callable[[str, StoredTensor], torch.Tensor | None]
"""The tensor of that name as it lies in a file, if whoever takes it will copy it; else None."""
Wanted = Callable[[str], bool] | None
"""Whether a part of the state is wanted, by its name; None: all are."""


def assemble(
    name: str,
    manifest: Manifest,
    rank: int,
    read: Read,
    world_size: int | None = None,
    places: Places = NO_PLACES,
    wanted: Wanted = None,
    lent: Lent = lambda name, stored: None,
) -> Loaded:
    """The checkpoint of `manifest`, put together from the files that `read` reads: the parts that are `wanted`. A rank
    below 0 has nothing of its own. Damaged, Unreadable or Misfit."""
    try:
        assembly = _Assembly(_narrowed(manifest, wanted), rank, world_size, places(manifest), lent)
        return replace(assembly.put_together(name, read), manifest=manifest)
    except StateError as error:
        raise Unreadable(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"its state cannot be decoded: {error!r}") from None
    except (MemoryError, RuntimeError) as error:
        raise Unreadable(f"there is no memory for it: {error}") from None


def _narrowed(manifest: Manifest, wanted: Wanted) -> Manifest:
    if wanted is None:
        return manifest
    state = {part: value for part, value in manifest.state.items() if wanted(part)}
    names: set[str] = set()
    tree.decode(state, names.add)
    return replace(manifest, state=state, tensors={name: manifest.tensors[name] for name in names})


@dataclass(slots=True)
class _Aside:
    """Bytes of a stored box that are read aside. Then `part` of them goes to its place."""

    memory: torch.Tensor
    first: int
    """The element of the box with which `memory` begins."""
    size: tuple[int, ...]
    part: Box
    into: torch.Tensor

    def put(self) -> None:
        strides = [1] * len(self.size)
        for axis in range(len(self.size) - 1, 0, -1):
            strides[axis - 1] = strides[axis] * self.size[axis]
        offset = sum(map(int.__mul__, self.part.at, strides)) - self.first
        self.into.copy_(torch.as_strided(self.memory, self.part.size, strides, offset))


@dataclass(slots=True)
class _Wanted:
    """What is to be read of one stored box."""

    piece: Piece
    stored: StoredTensor
    takes: list[Take]


@dataclass(slots=True)
class _Assembly:
    manifest: Manifest
    rank: int
    world_size: int | None
    places: Mapping[str, Place]
    lent: Lent
    wanted: dict[tuple[str, str], _Wanted] = field(default_factory=dict)
    """By file and key."""
    asides: list[_Aside] = field(default_factory=list)
    cuts: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def put_together(self, name: str, read: Read) -> Loaded:
        shared = {key: self._room_for(key, stored) for key, stored in self.manifest.tensors.items()}
        everyone = self.world_size not in (None, self.manifest.world_size)
        owns: dict[str, dict[str, Any]] = {}
        for file in self.manifest.files:
            mine = everyone or file == shard_name(self.rank)
            if mine or any(wanted == file for wanted, _ in self.wanted):
                own = self._read(file, read, mine)
                if mine:
                    owns[file] = own
        for lost in self.wanted.values():
            raise _misfit(misfit(lost.piece, lost.stored, None))
        for aside in self.asides:
            aside.put()
        for target, source in self.cuts:
            target.copy_(source)
        made = {key: self._placed(key, local) for key, local in shared.items()}
        return Loaded(
            name=name,
            manifest=self.manifest,
            shared=tree.decode(self.manifest.state, made.__getitem__),
            own=owns.get(shard_name(self.rank)),
            everyone=tuple(owns[shard_name(r)] for r in range(self.manifest.world_size)) if everyone else None,
        )

    def _placed(self, key: str, local: torch.Tensor) -> torch.Tensor:
        try:
            return self.places[key].made(local) if key in self.places else local
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # It fails in torch, for what the tensor is to be here. No byte of the checkpoint is wrong.
            raise Unreadable(f"{key} cannot be made here: {error!r}") from None

    def _read(self, file: str, read: Read, mine: bool) -> dict[str, Any]:
        """All that is wanted of `file`, and if it is `mine`, the state of its rank alone."""
        shared = {p.key for stored in self.manifest.tensors.values() for p in stored.pieces if p.file == file}
        own: dict[str, torch.Tensor] = {}
        own_prefix = f"rank{rank_of(file)}/"
        problems: list[str] = []

        def sink(entry: Entry) -> list[Take]:
            if (wanted := self.wanted.pop((file, entry.key), None)) is not None:
                if problem := misfit(wanted.piece, wanted.stored, entry):
                    problems.append(problem)
                    return []
                return wanted.takes
            if entry.key in shared or not mine or not entry.key.startswith(own_prefix):
                return []
            own[entry.key] = tensors.empty(entry.spec)
            return [(0, tensors.view_of(own[entry.key]))]

        metadata = read(file, sink)
        if problems:
            raise _misfit(problems[0])
        state: dict[str, Any] = tree.decode(json.loads(metadata["state"]), own.__getitem__) if mine else {}
        return state

    def _room_for(self, key: str, stored: StoredTensor) -> torch.Tensor:
        """A tensor for what this rank needs of `stored`. It has its values when all of `wanted` is read."""
        if key not in self.places and (lent := self.lent(key, stored)) is not None:
            return lent
        box = self.places[key].box if key in self.places else boxes.whole(stored.shape)
        local = tensors.empty(Spec(stored.dtype, box.size))
        target = local
        if stored.flat:
            if box != boxes.whole(stored.shape):
                # Format 1 does not know boxes: it is read whole, and cut.
                target = tensors.empty(stored.spec)
                self.cuts.append((local, target[box.slices]))
            box, target = boxes.whole(stored.grid), target.reshape(-1)
        for piece in stored.pieces:
            if (part := box.meet(piece.box)) is not None:
                self._want(stored, piece, part, target, box)
        return local

    def _want(self, stored: StoredTensor, piece: Piece, part: Box, target: torch.Tensor, box: Box) -> None:
        size = target.element_size()
        into, out_of = part.within(box), part.within(piece.box)
        first, count = boxes.span(out_of, piece.box.size)
        if boxes.is_one_run(into, box.size) and boxes.is_one_run(out_of, piece.box.size):
            start = boxes.span(into, box.size)[0] * size
            view = tensors.view_of(target)[start : start + count * size]
        else:
            memory = tensors.empty(Spec(stored.dtype, (count,)))
            self.asides.append(_Aside(memory, first, piece.box.size, out_of, target[into.slices]))
            view = tensors.view_of(memory)
        self.wanted[piece.file, piece.key] = _Wanted(piece, stored, [(first * size, view)])


def _misfit(problem: str | None) -> Misfit:
    # Every byte is as it was written. An older version wrote such a checkpoint where the ranks' states differed.
    return Misfit(f"its ranks had tensors of other names or shapes, so they do not fit together: {problem}")
