"""Which node has which snapshot, and how the others get it before a restore.

    node 0   whole: step 40, step 41        newest anywhere: 41 of attempt 0
    node 1   (new: nothing)                 its ranks take the files from those of node 0, into their own shared memory
    in a ring: node 0 has the files of ranks 0 and 2, node 1 (new) nothing, node 2 those of 1 and 2: all are somewhere

Then each node has it, and each rank reads it there, as on one node. Every process sends and takes in the same order, by
file and node, so none waits for one that waits for it.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from ...rundir.machine.shm import buffer_path
from ..group import Ranks
from ..memory import snapshots
from ..memory.board import Record
from ..memory.segment import Buffer, Segment

_TAG = 0x7A12
_CHUNK = 32 << 20
_BUFFER_S = 10.0
"""Seconds for which a buffer is waited for: processes of a dead attempt may still hold memory of a GPU."""


@dataclass(frozen=True, slots=True, order=True)
class Whole:
    """A snapshot of which every file is somewhere."""

    step: int
    attempt: int
    world_size: int


@dataclass(frozen=True, slots=True)
class Holdings:
    """The files of each snapshot that each node has, by the ranks that made them."""

    by_node: tuple[Mapping[Whole, frozenset[int]], ...]

    @property
    def wholes(self) -> list[Whole]:
        """The snapshots of which every file is somewhere."""
        found = {whole for held in self.by_node for whole in held}
        return [whole for whole in found if len(self._files(whole)) == whole.world_size]

    def _files(self, whole: Whole) -> frozenset[int]:
        return frozenset().union(*(held.get(whole, frozenset()) for held in self.by_node))

    def newest(self, tried: Sequence[int] = ()) -> Whole | None:
        """The newest one that is of no step in `tried`: of two of a step, that of the later attempt."""
        return max((whole for whole in self.wholes if whole.step not in tried), default=None)

    def of(self, step: int) -> Whole | None:
        """The one of that step."""
        return max((whole for whole in self.wholes if whole.step == step), default=None)

    def split(self, whole: Whole) -> tuple[list[int], list[int]]:
        """The nodes that have all of it, and those that do not."""
        have = [node for node, held in enumerate(self.by_node) if len(held.get(whole, ())) == whole.world_size]
        return have, [node for node in range(len(self.by_node)) if node not in have]


def held(segment: Path, ranks: Ranks) -> Holdings:
    """What all nodes hold. All ranks call it."""
    there = ranks.each_node(lambda: _counted(segment))
    nodes = ({Whole(*key): frozenset(files) for key, files in each} for each in there)
    return Holdings(tuple(nodes))


def _counted(segment: Path) -> list[tuple[snapshots.Key, list[int]]]:
    """The files of each snapshot here, if it is whole, or such that the others may be elsewhere."""
    boards, found = snapshots.boards(segment), []
    for key, places in snapshots.files(segment, boards).items():
        _, attempt, world_size = key
        files = [file for file in places if file < world_size]
        if len(files) < world_size:
            files = [file for file in files if boards[file].scattered(attempt)]
        if files:
            found.append((key, sorted(files)))
    return found


def _found(segment: Path) -> dict[snapshots.Key, dict[int, tuple[str, Record]]]:
    """What is here: the slot and the record of each file, by snapshot and rank."""
    return snapshots.files(segment, snapshots.boards(segment))


@dataclass(frozen=True, slots=True)
class _Way:
    """A file that goes from one rank to another."""

    file: int
    size: tuple[int, int]
    """Of the file, and of its sidecar."""
    sender: int
    taker: int


def bring(segment: Path, whole: Whole, holdings: Holdings, ranks: Ranks) -> str | None:
    """Every node has all of the snapshot `whole`; else why not, the same on every rank. All ranks call it."""
    have, needy = holdings.split(whole)
    if not needy:
        return None
    here = ranks.nodes.of[ranks.rank]
    told = ranks.each_node(lambda: _cleared(segment, whole, everything=bool(have) and here in needy))
    there = [{file: (payload, sidecar) for file, payload, sidecar in each} for each in told]
    ways = _ways(whole, have[:1] or list(range(len(there))), needy, there, ranks)
    if ways is None:
        return "it is gone"
    taking = _Taking(segment, whole, [way for way in ways if way.taker == ranks.rank])
    for rank, problem in enumerate(ranks.exchange(taking.problem)):
        if problem is not None:
            return f"rank {rank} cannot take it from another node: {problem}"
    found = _found(segment).get(astuple(whole), {})
    # All go through the ways in the same order, so none waits for one that waits for it.
    for way in ways:
        if way.sender == ranks.rank:
            slot, _ = found[way.file]
            content = _mapped(buffer_path(segment, way.file, slot), sum(way.size))
            for part in _cut(content):
                ranks.send(part, way.taker, _TAG).wait()
        elif way.taker == ranks.rank:
            taking.take(way, ranks)
    ranks.exchange(None)
    return None


def _cleared(segment: Path, whole: Whole, everything: bool) -> list[tuple[int, int, int]]:
    """This node has room for `whole`: nothing else is there, or nothing at all. The files of it that are there: (rank,
    bytes, bytes of the sidecar)."""
    if everything:
        snapshots.empty(segment)
        return []
    found = _found(segment).get(astuple(whole), {})
    if len(found) < whole.world_size:
        snapshots.drop(segment, lambda attempt, step: (attempt, step) != (whole.attempt, whole.step))
    return [(file, record.payload, record.sidecar) for file, (_, record) in found.items()]


def _ways(
    whole: Whole,
    sources: Sequence[int],
    needy: Sequence[int],
    there: Sequence[Mapping[int, tuple[int, int]]],
    ranks: Ranks,
) -> list[_Way] | None:
    """How the needy nodes get what they lack; None if a file is nowhere. `there`: the files of each node, with their
    sizes."""
    found = []
    for file in range(whole.world_size):
        holders = [node for node in sources if file in there[node]]
        if not holders:
            return None
        for node in needy:
            if file not in there[node]:
                source = holders[node % len(holders)]
                senders, takers = ranks.nodes.ranks(source), ranks.nodes.ranks(node)
                rank, other = senders[file % len(senders)], takers[file % len(takers)]
                found.append(_Way(file, there[source][file], rank, other))
    return found


def _mapped(path: Path, size: int) -> torch.Tensor:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # A private copy, of which no page is ever copied: torch warns of memory that it must not change.
        return torch.frombuffer(mmap.mmap(fd, size, access=mmap.ACCESS_COPY), dtype=torch.uint8)
    finally:
        os.close(fd)


def _cut(content: torch.Tensor) -> list[torch.Tensor]:
    return [content[start : start + _CHUNK] for start in range(0, len(content), _CHUNK)]


class _Taking:
    """The files that this rank takes for its node. `problem`: why there is no room for them."""

    def __init__(self, segment: Path, whole: Whole, ways: Sequence[_Way]) -> None:
        self.problem: str | None = None
        self._whole = whole
        self._buffers: dict[int, tuple[Segment, Buffer]] = {}
        try:
            for way in ways:
                own = Segment(segment, way.file, whole.world_size, whole.attempt)
                self._buffers[way.file] = own, _buffer(own, sum(way.size))
        except OSError as error:
            self.problem = str(error)

    def take(self, way: _Way, ranks: Ranks) -> None:
        """That file is there, and committed."""
        segment, buffer = self._buffers[way.file]
        payload, sidecar = way.size
        content = torch.frombuffer(buffer.memory, dtype=torch.uint8)[: payload + sidecar]
        for part in _cut(content):
            ranks.take(part, way.sender, _TAG)
        segment.commit(buffer, self._whole.step, payload, sidecar)
        segment.close()


def _buffer(segment: Segment, size: int) -> Buffer:
    until = time.monotonic() + _BUFFER_S
    while (buffer := segment.begin(size)) is None:
        if time.monotonic() > until:
            raise OSError("no buffer in its shared memory is free")
        time.sleep(0.01)
    return buffer
