"""The board of a rank says which snapshot each of its buffers holds. A snapshot exists once its commit record is there.

    4096 bytes:          slot a | slot b | slot c | passed (8) | scattered (8) | unpinned (8)
    a slot, 128 bytes:   record (72) | checksum (8) | … | pin of a flush (8) | pin of the rank (8)

    write a snapshot:  invalidate (the record is zeros) -> fill the buffer -> record, its checksum with it = COMMIT

A record that is not whole does not match its checksum and does not count. The memory is shared: writes of a dead
process stay, in the order in which it made them. A pin is one word: the step that a flush will read, plus one. The rank
pins what it begins, a flush what it has found; each has a word of its own, since the rank may have begun another
snapshot there in the moment in which the flush pins the one that was. `passed` is one word too: the attempt, and the
last step that this rank has committed or skipped. `scattered` is the attempt, plus one, whose snapshots are spread over
nodes: a file of them counts although others are elsewhere. `unpinned` is when a pin was last cleared, in nanoseconds.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path

import xxhash

from ...rundir.machine.shm import SLOTS

_FIELDS = struct.Struct("<8s8q")
_CHECK = struct.Struct("<Q")
_MAGIC = b"SNAPSHT1"
_SLOT_BYTES = 128
_BY_FLUSH, _BY_RANK = _PINS_AT = 112, 120
_PASSED_AT = 3 * _SLOT_BYTES
_SCATTERED_AT = _PASSED_AT + 8
_UNPINNED_AT = _SCATTERED_AT + 8
_STEP_BITS = 40
_BYTES = 4096
RECORD_BYTES = _FIELDS.size + _CHECK.size


@dataclass(frozen=True, slots=True)
class Record:
    """One committed snapshot of one rank. `owner` stands for the run. `payload` and `sidecar` are lengths in bytes.
    `serial` differs for every use of a buffer."""

    owner: int
    attempt: int
    step: int
    world_size: int
    rank: int
    payload: int
    sidecar: int
    serial: int

    def encode(self) -> bytes:
        raw = _FIELDS.pack(_MAGIC, *_values(self))
        return raw + _CHECK.pack(xxhash.xxh3_64_intdigest(raw))


# Called at every snapshot: dataclasses.astuple makes copies and takes fifty times as long.
_values = attrgetter(*(field.name for field in fields(Record)))


def owner_of(segment: Path) -> int:
    """The owner in the records of `segment`. It depends on the name, so another run does not accept a copy."""
    return xxhash.xxh3_64_intdigest(segment.name.encode()) >> 1


def decode(raw: bytes) -> Record | None:
    """The record in `raw`, or None if it is not whole."""
    fields, (check,) = raw[: _FIELDS.size], _CHECK.unpack_from(raw, _FIELDS.size)
    if xxhash.xxh3_64_intdigest(fields) != check:
        return None
    magic, *values = _FIELDS.unpack(fields)
    return Record(*values) if magic == _MAGIC and min(values) >= 0 else None


def _pin_of(slot: str, at: int) -> int:
    return (SLOTS.index(slot) * _SLOT_BYTES + at) // 8


class Board:
    """The board at `path`, mapped. OSError if the file is missing, ValueError if it is not a board."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size != _BYTES:
                raise ValueError(f"{path} is not a board")
            self._memory = mmap.mmap(fd, _BYTES)
            self._status = os.fstat(fd)
        finally:
            os.close(fd)
        # As in beats: a word is stored at once, not byte by byte as struct stores it, so nobody reads half a word.
        self._words = memoryview(self._memory).cast("q")

    def is_at(self, path: Path) -> bool:
        """Whether other processes that open `path` get this board."""
        try:
            return os.path.samestat(self._status, path.lstat())
        except OSError:
            return False

    @staticmethod
    def create(path: Path) -> Board:
        """The board at `path`, made if it is missing."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Full memory must raise OSError here. Later it would be a SIGBUS, at a store.
            os.posix_fallocate(fd, 0, _BYTES)
        finally:
            os.close(fd)
        return Board(path)

    def read(self, slot: str) -> Record | None:
        """The record that is committed in `slot`, or None."""
        at = SLOTS.index(slot) * _SLOT_BYTES
        return decode(self._memory[at : at + RECORD_BYTES])

    def records(self) -> dict[str, Record]:
        """The committed records, by slot."""
        found = {slot: self.read(slot) for slot in SLOTS}
        return {slot: record for slot, record in found.items() if record is not None}

    def put(self, slot: str, raw: bytes) -> None:
        at = SLOTS.index(slot) * _SLOT_BYTES
        self._memory[at : at + len(raw)] = raw

    def commit(self, slot: str, record: Record) -> None:
        """`slot` holds the snapshot of `record`. All of its bytes must be written before."""
        self.put(slot, record.encode())

    def invalidate(self, slot: str) -> None:
        """`slot` holds no snapshot: its buffer may be written."""
        self.put(slot, bytes(RECORD_BYTES))

    def pin(self, slot: str, step: int, by_flush: bool = False) -> None:
        """A flush will read `step` in `slot`; until then the rank, which pins it unless it is pinned `by_flush`, does
        not write there."""
        self._words[_pin_of(slot, _BY_FLUSH if by_flush else _BY_RANK)] = step + 1

    def unpin(self, slot: str, step: int | None = None) -> None:
        """`slot` is not pinned for `step` (None: for any)."""
        for at in _PINS_AT:
            word = self._words[_pin_of(slot, at)]
            if word and step in (None, word - 1):
                # First: who sees that the pin is gone sees since when.
                self._words[_UNPINNED_AT // 8] = time.monotonic_ns()
                self._words[_pin_of(slot, at)] = 0

    @property
    def unpinned_at(self) -> float:
        """When a pin was last cleared, in seconds of time.monotonic(), which all processes of a machine share."""
        return self._words[_UNPINNED_AT // 8] / 1e9

    def pinned(self, slot: str) -> frozenset[int]:
        """The steps for which `slot` is pinned."""
        words = (self._words[_pin_of(slot, at)] for at in _PINS_AT)
        return frozenset(word - 1 for word in words if word > 0)

    def pins(self) -> dict[str, frozenset[int]]:
        """The slots that are pinned, and for which steps."""
        found = {slot: self.pinned(slot) for slot in SLOTS}
        return {slot: steps for slot, steps in found.items() if steps}

    def scatter(self, attempt: int) -> None:
        """The snapshots of `attempt` are spread over nodes."""
        self._words[_SCATTERED_AT // 8] = attempt + 1

    def scattered(self, attempt: int) -> bool:
        """Whether those of that attempt are."""
        return self._words[_SCATTERED_AT // 8] == attempt + 1

    def go_past(self, attempt: int, step: int) -> None:
        """This rank is done with the snapshot of `step`: it has committed it, or never will."""
        self._words[_PASSED_AT // 8] = (attempt + 1) << _STEP_BITS | step

    def passed(self, attempt: int) -> int:
        """The last step that this rank is done with in that attempt, or -1."""
        word = self._words[_PASSED_AT // 8]
        return word & ((1 << _STEP_BITS) - 1) if word >> _STEP_BITS == attempt + 1 else -1
