"""The snapshots of a run in shared memory, for readers: the supervisor, a flush, a rank that restores.

    rank 0   a: step 8   b: step 9              newest that ALL ranks have: 8. Rank 1 was copying 9 when it died,
    rank 1   a: step 8   b: (being written)     and rank 0 does not write over its 8 before it sees rank 1's 9.

The ranks of one snapshot belong to one attempt and one world size. Needs no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...rundir.files.codec import encode, read
from ...rundir.files.durable import replace_soon
from ...rundir.machine import shm
from ...rundir.machine.shm import SLOTS, board_path, buffer_path, flushed_path, ranks_in
from ..nodes.lineage import NONE, Lineage
from .board import Board, Record, owner_of


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that every rank of its world has committed. `places` are (slot, record), by rank."""

    segment: Path
    attempt: int
    step: int
    world_size: int
    places: tuple[tuple[str, Record], ...]

    def path(self, rank: int) -> Path:
        return buffer_path(self.segment, rank, self.places[rank][0])

    def record(self, rank: int) -> Record:
        return self.places[rank][1]

    @property
    def bytes(self) -> int:
        return sum(record.payload for _, record in self.places)


def boards(segment: Path) -> dict[int, Board]:
    """The boards in `segment` that can be read, by rank."""
    found = {}
    for rank in ranks_in(segment):
        with contextlib.suppress(OSError, ValueError):
            found[rank] = Board(board_path(segment, rank))
    return found


Key = tuple[int, int, int]
"""(step, attempt, world size) of a snapshot."""


def files(segment: Path, found: Mapping[int, Board]) -> dict[Key, dict[int, tuple[str, Record]]]:
    """What is there of each snapshot: (slot, record), by rank."""
    owner = owner_of(segment)
    places: dict[Key, dict[int, tuple[str, Record]]] = {}
    for rank, board in found.items():
        for slot, record in board.records().items():
            if (record.owner, record.rank) == (owner, rank):
                key = (record.step, record.attempt, record.world_size)
                places.setdefault(key, {})[rank] = (slot, record)
    return places


def common(segment: Path, found: Mapping[int, Board]) -> list[Snapshot]:
    """The snapshots that all ranks have, oldest first."""
    return [
        Snapshot(segment, attempt, step, size, tuple(by_rank[rank] for rank in range(size)))
        for (step, attempt, size), by_rank in sorted(files(segment, found).items())
        if size > 0 and all(rank in by_rank for rank in range(size))
    ]


def find(
    segment: Path, step: int | None = None, attempt: int | None = None, lineage: Lineage = NONE
) -> Snapshot | None:
    """The newest snapshot that all ranks have; with `step` or `attempt`, the one of that step, of that attempt. None if
    there is none but those that `lineage` supersedes."""
    found = [
        snapshot
        for snapshot in common(segment, boards(segment))
        if step in (None, snapshot.step) and attempt in (None, snapshot.attempt)
        if not lineage.supersedes(snapshot.attempt, snapshot.step)
    ]
    return found[-1] if found else None


def newest_snapshot(segment: Path) -> int | None:
    """The step of the newest snapshot that all ranks have."""
    found = find(segment)
    return found.step if found else None


def newest_part(segment: Path, some: bool = False) -> int:
    """The step of the newest snapshot that is spread over nodes and of which this node has all that it keeps, or `some`
    of it; -1 if there is none. The rest is on other nodes, if they are still there."""
    found = boards(segment)
    parts = [
        step
        for (step, attempt, size), here in files(segment, found).items()
        if (some or len(here) == len(found))
        and len(here) < size
        and all(found[rank].scattered(attempt) for rank in here)
    ]
    return max(parts, default=-1)


def unchanged(snapshot: Snapshot) -> bool:
    """Whether every buffer still holds `snapshot`. Then the bytes that were read before belong to it."""
    found = boards(snapshot.segment)
    return all(
        rank in found and found[rank].read(slot) == record for rank, (slot, record) in enumerate(snapshot.places)
    )


def pin(snapshot: Snapshot) -> None:
    """From now on no rank writes over `snapshot`, until the pins are cleared. unchanged() then tells if one already
    has."""
    found = boards(snapshot.segment)
    for rank, (slot, _) in enumerate(snapshot.places):
        if rank in found:
            found[rank].pin(slot, snapshot.step, by_flush=True)


def any_pinned(found: Iterable[Board]) -> bool:
    return any(board.pins() for board in found)


def pinned(segment: Path) -> list[int]:
    """The steps of the snapshots that all ranks have and that are pinned for a flush, oldest first."""
    found = boards(segment)
    return sorted(
        {
            snapshot.step
            for snapshot in common(segment, found)
            if any(snapshot.step in found[rank].pinned(slot) for rank, (slot, _) in enumerate(snapshot.places))
        }
    )


def clear_pins(segment: Path, step: int | None = None) -> None:
    """No buffer is pinned for a flush of `step` (None: of any step). Call it when that flush is over."""
    for board in boards(segment).values():
        for slot in SLOTS:
            board.unpin(slot, step)


def flushed(snapshot: Snapshot) -> None:
    """It is known, unless shared memory is full, that the checkpoint of its step is a copy of `snapshot`."""
    with contextlib.suppress(OSError):
        replace_soon(flushed_path(snapshot.segment), encode(_serials(snapshot)))


def is_flushed(snapshot: Snapshot) -> bool:
    """Whether flushed() was called with `snapshot`, and with no other since."""
    try:
        return read(flushed_path(snapshot.segment), list[int]) == _serials(snapshot)
    except (OSError, ValueError):
        return False


def _serials(snapshot: Snapshot) -> list[int]:
    return [record.serial for _, record in snapshot.places]


def drop(segment: Path, covers: Callable[[int, int], bool]) -> None:
    """Removes the snapshots for which `covers(attempt, step)` is true. Call it only while no rank takes snapshots."""
    for board in boards(segment).values():
        for slot, record in board.records().items():
            if covers(record.attempt, record.step):
                board.invalidate(slot)
                board.unpin(slot)


def keep_only(segment: Path, ranks: Container[int]) -> bool:
    """Whether there are no files of ranks other than `ranks`. They are removed unless one is pinned for a flush."""
    others = [rank for rank in ranks_in(segment) if rank not in ranks]
    if others and any_pinned(board for rank, board in boards(segment).items() if rank in others):
        return False
    for rank in others:
        for path in (board_path(segment, rank), *(buffer_path(segment, rank, slot) for slot in SLOTS)):
            path.unlink(missing_ok=True)
    return True


def empty(segment: Path) -> None:
    """`segment` is empty and still exists. If it were gone, the supervisor would say that somebody else removed it."""
    shm.remove(segment)
    with contextlib.suppress(OSError):
        shm.claim(segment)


def remove(segment: Path) -> None:
    """No snapshot of the run is left in shared memory."""
    shm.remove(segment)
