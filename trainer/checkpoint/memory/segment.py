"""The buffers of one rank in shared memory, as their writer uses them: the next one to write, and the commit.

    begin    a buffer that may be written over -> its record is zeros; prepare() does that ahead
    (fill)   header, tensors, sidecar
    commit   its record

    May be written over: a buffer that was never committed, or that a dead attempt left; a snapshot older than the
    newest one that all ranks have; a snapshot that some rank has skipped. Never the newest one that all have, never a
    pinned one. So if another rank is late, no buffer is free, and there is no snapshot this time.

    None is free while a process of the last attempt holds memory of a GPU: a copy of it may still land there. (Fresh
    buffers would have to be taken and registered anew: 0.5 s for 2 GB, as long as such a process takes to be gone.)

There are two buffers, and a third only while one is pinned.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...rundir.machine.proc import left_of
from ...rundir.machine.shm import SLOTS, board_path, buffer_path, claim, ranks_in
from ...rundir.variables import LEAVING
from .board import Board, Record, owner_of
from .snapshots import Snapshot, boards, common, pinned

_SLACK = 1 << 20


class Removed(OSError):
    """Somebody else has removed this rank's files in shared memory: nobody would find a snapshot in them."""


@dataclass(eq=False, slots=True)
class Buffer:
    """The memory of one slot. `serial` differs each time that memory is mapped for the slot."""

    slot: str
    fd: int
    memory: mmap.mmap
    serial: int
    releases: dict[str, Callable[[], object]]
    """Functions to call before the memory is unmapped, by what they release. A later one takes the place of an earlier
    one, or a buffer would keep all that was ever copied into it."""


class Segment:
    """The files of one rank. Made by one thread, used by one thread."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        attempt: int,
        alone: bool = False,
        scattered: bool = False,
    ) -> None:
        """`alone`: no snapshot of all ranks will be here. The newest one of this rank is kept, and what is pinned.
        `scattered`: it counts although the others are elsewhere."""
        self._alone = alone or scattered
        self.folder, self.rank, self.world_size, self.attempt = folder, rank, world_size, attempt
        self._owner = owner_of(folder)
        claim(folder)
        self._own = Board.create(board_path(folder, rank))
        if scattered:
            self._own.scatter(attempt)
        # Boards of a larger world too: its last snapshot counts until this world has one.
        self._boards = {**boards(folder), rank: self._own}
        self._buffers: dict[str, Buffer] = {}
        self._prepared: Buffer | None = None
        self._thread = threading.get_ident()
        # Made from the process and the time: no record of this attempt can equal one of another attempt.
        self._serial = itertools.count(time.monotonic_ns())
        self._held = {slot for slot in SLOTS if buffer_path(folder, rank, slot).exists()}
        self._swept = False
        self._leaving: str | None = None
        self.cramped = False
        promised = pinned(folder)
        for board in (self._own, *self._of_larger_world()):
            for slot, steps in board.pins().items():
                # Ranks pinned it, and one died before it had committed: no flush will ever read it.
                for step in steps if board.read(slot) is None else steps.difference(promised):
                    board.unpin(slot, step)

    def boards(self) -> dict[int, Board]:
        """The boards of all ranks that have a board."""
        if not self._alone and any(rank not in self._boards for rank in range(self.world_size)):
            self._boards = {**boards(self.folder), **self._boards}
        return self._boards

    def newest(self) -> Snapshot | None:
        """The newest snapshot that all ranks have."""
        found = common(self.folder, self.boards())
        return found[-1] if found else None

    def prepare(self) -> None:
        """begin() will find a buffer at once, if one that is mapped may be written over. What that one held is gone.
        Nothing is done in a thread that does not call begin(): a buffer may be filled meanwhile."""
        if threading.get_ident() != self._thread:
            return
        if self._prepared is not None or len(self._held) > 2 or not self._is_there() or self._may_change():
            return
        newest = self.newest()
        if (free := self._free(newest)) and (buffer := self._buffers.get(free[0])) is not None:
            self._own.invalidate(buffer.slot)
            self._prepared = buffer
            self._forget_larger_world(newest)

    def begin(self, size: int, pin: int | None = None) -> Buffer | None:
        """An empty buffer of `size` bytes, pinned for step `pin`. None if no buffer is free yet. OSError if shared
        memory has no room for it, Removed if this rank's files are gone."""
        prepared, self._prepared, self._thread = self._prepared, None, threading.get_ident()
        if prepared is not None and len(prepared.memory) >= size and not self._own.pinned(prepared.slot):
            if pin is not None:
                self._own.pin(prepared.slot, pin)
            return prepared
        if not self._is_there():
            raise Removed(f"another program has removed the snapshots from {self.folder.parent}")
        newest = self.newest()
        free = self._free(newest)
        if not free or self._may_change():
            return None
        slot, *spare = free
        self._own.invalidate(slot)
        if pin is not None:
            self._own.pin(slot, pin)
        elif len(self._held) > 2 and not self._own.pins():
            for other in spare:
                self._drop(other)
        self._forget_larger_world(newest)
        third = slot not in self._held and len(self._held) >= 2
        try:
            return self._mapped(slot, size)
        except OSError:
            # Without room for a third buffer there are only no snapshots while a flush reads. Without room for one of
            # the two there are no snapshots any more.
            if not third:
                raise
            self.cramped = True
            return None

    def _may_change(self) -> bool:
        """Whether a GPU may still copy into these buffers for a process of the last attempt, which is about to end."""
        if self._leaving is None:
            # Only the release tells: a standby makes this before it.
            self._leaving = os.environ.get(LEAVING, "")
        if self._leaving:
            self._leaving = left_of(self._leaving)
        return bool(self._leaving)

    def is_mapped(self, size: int) -> bool:
        """Whether begin() will give memory that is mapped already, or none."""
        free = self._free(self.newest())
        buffer = self._buffers.get(free[0]) if free else None
        return not free or (buffer is not None and len(buffer.memory) >= size)

    def has(self, step: int) -> bool:
        """Whether this rank's snapshot of `step` is committed."""
        return any((r.attempt, r.step) == (self.attempt, step) for r in self._own.records().values())

    def take_back(self, step: int) -> None:
        """This rank's snapshot of `step` does not count: its state may be of a later step."""
        for slot, record in self._own.records().items():
            if (record.attempt, record.step) == (self.attempt, step):
                self._own.invalidate(slot)

    def _is_there(self) -> bool:
        """Whether other processes can open the memory that is mapped here. Removed files live on in this process
        alone."""
        try:
            return self._own.is_at(board_path(self.folder, self.rank)) and all(
                os.path.samestat(os.fstat(buffer.fd), buffer_path(self.folder, self.rank, slot).lstat())
                for slot, buffer in self._buffers.items()
            )
        except OSError:
            return False

    def close(self) -> None:
        """Nothing is mapped here any more. The files stay."""
        self._prepared = None
        for slot in list(self._buffers):
            self._unmap(slot)

    def _free(self, newest: Snapshot | None) -> list[str]:
        """The slots that may be written over, the oldest content first."""
        pins, records = self._own.pins(), self._own.records()
        if self._alone:
            newest_own = max((record.step for record in records.values()), default=-1)
            slots = [slot for slot in (SLOTS if pins or "c" in self._held else "ab") if slot not in pins]
            return [slot for slot in slots if slot not in records or records[slot].step < newest_own]
        kept = newest.places[self.rank][0] if newest and self.rank < newest.world_size else None
        two = sorted(self._held | {"a", "b"})[:2] if len(self._held) < 2 else self._held
        free = [
            slot
            for slot in (SLOTS if pins else two)
            if slot != kept and slot not in pins and self._past(records.get(slot), newest)
        ]
        # An existing buffer comes before one that would have to be made.
        return sorted(
            free, key=lambda s: (s == "c" and s not in self._held, records[s].step if s in records else -1, s)
        )

    def _past(self, record: Record | None, newest: Snapshot | None) -> bool:
        """Whether `record` is useless now: it is older than `newest`, or some rank will never have its snapshot."""
        if record is None or record.attempt != self.attempt or (newest is not None and record.step < newest.step):
            return True
        return any(
            board.passed(self.attempt) >= record.step
            and all((r.step, r.attempt) != (record.step, self.attempt) for r in board.records().values())
            for rank, board in self.boards().items()
            if rank < self.world_size
        )

    def commit(self, buffer: Buffer, step: int, payload: int, sidecar: int) -> None:
        """`buffer` holds this rank's part of the snapshot of `step`."""
        self._own.commit(
            buffer.slot,
            Record(self._owner, self.attempt, step, self.world_size, self.rank, payload, sidecar, next(self._serial)),
        )
        self._own.go_past(self.attempt, step)

    def skip(self, step: int) -> None:
        """This rank will have no snapshot of `step`, so the other ranks need not keep theirs."""
        self._own.go_past(self.attempt, step)

    def _mapped(self, slot: str, size: int) -> Buffer:
        buffer = self._buffers.get(slot)
        if buffer is None or len(buffer.memory) < size:
            self._unmap(slot)
            path = buffer_path(self.folder, self.rank, slot)
            fd = self._opened(path, size)
            self._held.add(slot)
            memory = mmap.mmap(fd, 0)
            buffer = self._buffers[slot] = Buffer(slot, fd, memory, next(self._serial), {})
        return buffer

    def _opened(self, path: Path, size: int) -> int:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            if os.fstat(fd).st_size >= size:
                return fd
            os.close(fd)
            path.unlink()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Takes every page now. Full memory must raise OSError here; later it would be a SIGBUS in a copy.
            os.posix_fallocate(fd, 0, size + size // 64 + _SLACK)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        return fd

    def _unmap(self, slot: str) -> None:
        if buffer := self._buffers.pop(slot, None):
            for release in buffer.releases.values():
                release()
            os.close(buffer.fd)

    def _drop(self, slot: str) -> None:
        self._own.invalidate(slot)
        buffer_path(self.folder, self.rank, slot).unlink(missing_ok=True)
        self._unmap(slot)
        self._held.discard(slot)

    def _of_larger_world(self) -> list[Board]:
        """The boards of ranks of a larger, dead world, for which rank 0 acts."""
        return [board for rank, board in self._boards.items() if self.rank == 0 and rank >= self.world_size]

    def _forget_larger_world(self, newest: Snapshot | None) -> None:
        """Files of ranks of a larger, dead world are removed, once this world has its own snapshot."""
        if self._swept or self.rank != 0 or newest is None or newest.attempt != self.attempt:
            return
        if any(board.pins() for board in self._of_larger_world()):
            return  # a flush is to read it first
        self._swept = True
        for rank in ranks_in(self.folder):
            if rank >= self.world_size:
                self._boards.pop(rank, None)
                for path in (board_path(self.folder, rank), *(buffer_path(self.folder, rank, s) for s in SLOTS)):
                    path.unlink(missing_ok=True)
