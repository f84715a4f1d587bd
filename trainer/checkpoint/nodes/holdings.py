"""Which node has which snapshot whole, and how the others get it before a restore.

    node 0   whole: step 40, step 41        newest anywhere: 41 of attempt 0
    node 1   (new: nothing)                 its ranks take the files from those of node 0, into their own shared memory

Then each node has it, and each rank reads it there, as on one node. Every process sends and takes in the same order, by
file and node, so none waits for one that waits for it.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from ..group import Ranks
from ..memory import snapshots
from ..memory.segment import Buffer, Segment
from ..memory.snapshots import Snapshot

_TAG = 0x7A12
_CHUNK = 32 << 20
_BUFFER_S = 10.0
"""Seconds for which a buffer is waited for: processes of a dead attempt may still hold memory of a GPU."""


@dataclass(frozen=True, slots=True, order=True)
class Whole:
    """A snapshot of which some node has every file."""

    step: int
    attempt: int
    world_size: int


@dataclass(frozen=True, slots=True)
class Holdings:
    """The whole snapshots, by node."""

    by_node: tuple[tuple[Whole, ...], ...]

    def newest(self, tried: Sequence[int] = ()) -> Whole | None:
        """The newest one anywhere that is of no step in `tried`: of two of a step, that of the later attempt."""
        return max((whole for held in self.by_node for whole in held if whole.step not in tried), default=None)

    def of(self, step: int) -> Whole | None:
        """The one of that step."""
        return max((whole for held in self.by_node for whole in held if whole.step == step), default=None)

    def split(self, whole: Whole) -> tuple[list[int], list[int]]:
        """The nodes that have it, and those that do not."""
        have = [node for node, held in enumerate(self.by_node) if whole in held]
        return have, [node for node in range(len(self.by_node)) if node not in have]


def held(segment: Path, ranks: Ranks) -> Holdings:
    """What all nodes hold. All ranks call it."""
    there = ranks.each_node(lambda: [astuple(whole) for whole in _wholes(segment)])
    return Holdings(tuple(tuple(Whole(*whole) for whole in wholes) for wholes in there))


def _wholes(segment: Path) -> list[Whole]:
    found = snapshots.common(segment, snapshots.boards(segment))
    return [Whole(snapshot.step, snapshot.attempt, snapshot.world_size) for snapshot in found]


def bring(segment: Path, whole: Whole, holdings: Holdings, ranks: Ranks) -> str | None:
    """Every node has the snapshot `whole`; else why not, the same on every rank. All ranks call it."""
    have, needy = holdings.split(whole)
    if not needy:
        return None
    nodes, here = ranks.nodes, ranks.nodes.of[ranks.rank]
    source = snapshots.find(segment, whole.step, whole.attempt) if here == have[0] else None
    told = [[r.payload, r.sidecar] for _, r in source.places] if source else []
    ranks.each_node(lambda: snapshots.empty(segment) if here in needy else None)
    sizes: list[tuple[int, int]] = next(filter(None, ranks.exchange(told)), [])
    if len(sizes) != whole.world_size:
        return "it is gone"
    taking = _Taking(segment, whole, sizes, nodes.beside(ranks.rank), ranks) if here in needy else None
    problems = ranks.exchange(taking.problem if taking else None)
    for rank, problem in enumerate(problems):
        if problem is not None:
            return f"rank {rank} cannot take it from another node: {problem}"
    if source is not None:
        _send(source, [nodes.ranks(node) for node in needy], nodes.ranks(have[0]), ranks)
    if taking is not None:
        taking.take(nodes.ranks(have[0]))
    ranks.exchange(None)
    return None


def _mine(files: int, beside: Sequence[int], rank: int) -> Iterator[int]:
    """The files that `rank` handles for its node."""
    return (file for file in range(files) if beside[file % len(beside)] == rank)


def _send(snapshot: Snapshot, others: list[tuple[int, ...]], beside: Sequence[int], ranks: Ranks) -> None:
    for file in _mine(snapshot.world_size, beside, ranks.rank):
        record = snapshot.record(file)
        fd = os.open(snapshot.path(file), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # A private copy, of which no page is ever copied: torch warns of memory that it must not change.
            memory = mmap.mmap(fd, record.payload + record.sidecar, access=mmap.ACCESS_COPY)
        finally:
            os.close(fd)
        content = torch.frombuffer(memory, dtype=torch.uint8)
        for there in others:
            for part in _cut(content):
                ranks.send(part, there[file % len(there)], _TAG).wait()


def _cut(content: torch.Tensor) -> list[torch.Tensor]:
    return [content[start : start + _CHUNK] for start in range(0, len(content), _CHUNK)]


class _Taking:
    """The files that this rank takes for its node. `problem`: why there is no room for them."""

    def __init__(
        self, segment: Path, whole: Whole, sizes: list[tuple[int, int]], beside: Sequence[int], ranks: Ranks
    ) -> None:
        self.problem: str | None = None
        self._whole, self._sizes, self._ranks = whole, sizes, ranks
        self._buffers: dict[int, tuple[Segment, Buffer]] = {}
        try:
            for file in _mine(whole.world_size, beside, ranks.rank):
                own = Segment(segment, file, whole.world_size, whole.attempt)
                self._buffers[file] = own, _buffer(own, sum(sizes[file]))
        except OSError as error:
            self.problem = str(error)

    def take(self, source: Sequence[int]) -> None:
        """They are there, and committed. `source`: the ranks of the node that sends them."""
        for file, (segment, buffer) in self._buffers.items():
            payload, sidecar = self._sizes[file]
            content = torch.frombuffer(buffer.memory, dtype=torch.uint8)[: payload + sidecar]
            for part in _cut(content):
                self._ranks.take(part, source[file % len(source)], _TAG)
            segment.commit(buffer, self._whole.step, payload, sidecar)
            segment.close()


def _buffer(segment: Segment, size: int) -> Buffer:
    until = time.monotonic() + _BUFFER_S
    while (buffer := segment.begin(size)) is None:
        if time.monotonic() > until:
            raise OSError("no buffer in its shared memory is free")
        time.sleep(0.01)
    return buffer
