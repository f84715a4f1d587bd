"""Beats: passive memory in which each rank leaves its pid, step and phase. The supervisor reads them.

Each attempt has one mmapped file: a header record, then one 128-byte record per rank. A record is sixteen int64 words.
Every word is written whole (aligned, 8 bytes), so a reader sees an old or a new value, never half of one. Words are not
consistent with each other, and nothing depends on that. A beat costs no system call, lock, thread or socket.

The words from the total on are for people, and no verdict depends on them. The loss and the learning rate are doubles.
"""

from __future__ import annotations

import enum
import math
import mmap
import os
import struct
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..codes import Doing, Phase
from ..files.flock import locked
from ..files.untrusted_files import open_file, read_file
from ..machine.proc import is_running

_WORDS = 16
_RECORD = _WORDS * 8
_MAGIC = 0x5355504552563033  # "SUPERV03": the last two characters are the version of the layout
_PID, _STEP, _PHASE, _NS, _SOURCE, _SAVES, _LOWEST, _OWN, _ROLE, _TOTAL, _LOSS, _LR, _TOLD, _DOING, _SINCE = range(15)
_H_MAGIC, _H_WORLD, _H_FAULTS = range(3)
UNPLACED = -2
"""The step from which a rank resumed, if nothing tells it. Such a rank counts its steps from its own start."""
_LARGEST = 1 << 20
"""The size of the largest beats file in bytes: that of 8,000 ranks."""
ROOM = 256
"""Records in the file for a launch of one rank. Its script may start ranks of its own."""


class Source(enum.IntEnum):
    """The writer of the steps: nobody yet, the optimizer hook (any script), or a loop that reports its phases."""

    NONE = 0
    HOOK = 1
    LOOP = 2


class Role(enum.IntFlag):
    """The way in which a process became a rank. LAUNCHED: torchrun started it."""

    LAUNCHED = 0
    SPAWNED = 1
    """A process of the script started it."""
    GROUPED = 2
    """The process has joined a process group."""


_PHASES, _SOURCES, _DOINGS = frozenset(Phase), frozenset(Source), frozenset(Doing)


@dataclass(frozen=True, slots=True)
class Beat:
    """The record of one rank. `at` is CLOCK_MONOTONIC in seconds, one clock for all processes of the machine."""

    rank: int
    pid: int
    step: int
    """Finished steps of the run. If `first_step` is UNPLACED: of this process."""
    phase: Phase
    at: float
    source: Source
    saves: int
    """Saves by the script itself that returned, to a file or not: a sign that it keeps its progress."""
    first_step: int
    """The step from which this rank resumed: -1 if not known yet, UNPLACED if it cannot be known."""
    own: float
    """Seconds from the end of a backward pass to the start of the next, summed up: time without waiting."""
    role: Role = Role.LAUNCHED
    total: int | None = None
    """The steps that the program will have done at its end, as it counts them. None if it does not tell."""
    loss: float | None = None
    """The last loss that it has told."""
    loss_step: int | None = None
    """The step, counted like `step`, after which it told that loss."""
    lr: float | None = None
    """The learning rate of the last step."""
    doing: Doing = Doing.NONE
    """Its present activity, if it tells one that may take long."""
    since: float = 0.0
    """The time when that began."""

    @property
    def placed(self) -> bool:
        """Whether `step` counts steps of the run."""
        return self.first_step != UNPLACED


def create_beats(path: Path, nproc: int) -> None:
    """Creates the beats file `path` for a launch of `nproc` ranks, all silent. Its blocks are allocated, so no later
    write can fail. For a single rank, the file has room for ranks that it may start itself."""
    world_size = ROOM if nproc == 1 else nproc
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # On a full disk this must be an OSError here, not a SIGBUS in the middle of training.
        os.posix_fallocate(fd, 0, _RECORD * (world_size + 1))
        words = array("q", bytes(_RECORD * (world_size + 1)))
        words[_H_WORLD] = world_size
        for rank in range(world_size):
            words[(rank + 1) * _WORDS + _LOWEST] = -1
        # Written, not mapped: a disk that does not answer would hold up every thread of this process.
        os.pwrite(fd, words.tobytes()[_RECORD:], _RECORD)
        words[_H_MAGIC] = _MAGIC
        os.pwrite(fd, words.tobytes()[:_RECORD], 0)
    finally:
        os.close(fd)


def _check(words: Sequence[int], path: Path) -> None:
    if not words or words[_H_MAGIC] != _MAGIC or not 0 <= words[_H_WORLD] < len(words) // _WORDS:
        raise ValueError(f"{path} is not a beats file of this version")


def _beats(words: Sequence[int]) -> list[Beat]:
    found = []
    for rank in range(words[_H_WORLD]):
        if words[(rank + 1) * _WORDS + _PID] > 0:
            record = list(words[(rank + 1) * _WORDS : (rank + 2) * _WORDS])
            told = record[_TOLD]
            lr = _double(record[_LR])
            found.append(
                Beat(
                    rank=rank,
                    pid=record[_PID],
                    step=record[_STEP],
                    phase=Phase(record[_PHASE]) if record[_PHASE] in _PHASES else Phase.NONE,
                    at=record[_NS] / 1e9,
                    source=Source(record[_SOURCE]) if record[_SOURCE] in _SOURCES else Source.NONE,
                    saves=record[_SAVES],
                    first_step=record[_LOWEST],
                    own=record[_OWN] / 1e9,
                    role=Role(record[_ROLE] & (Role.SPAWNED | Role.GROUPED)),
                    total=record[_TOTAL] if record[_TOTAL] > 0 else None,
                    loss=_double(record[_LOSS]) if told > 0 else None,
                    loss_step=told - 1 if told > 0 else None,
                    lr=lr if 0.0 < lr < math.inf else None,
                    doing=Doing(record[_DOING]) if record[_DOING] in _DOINGS else Doing.NONE,
                    since=record[_SINCE] / 1e9,
                )
            )
    return found


def _double(word: int) -> float:
    value: float = struct.unpack("d", struct.pack("q", word))[0]
    return value


def last_beats(path: Path) -> list[Beat]:
    """The current beats in `path`, or none if it cannot be read. Maps nothing and writes nothing: the run may belong to
    another user."""
    try:
        words = array("q", read_file(path, _LARGEST))
        _check(words, path)
    except (OSError, ValueError):
        return []
    return _beats(words)


class _Mapped:
    def __init__(self, path: Path) -> None:
        fd = open_file(path, os.O_RDWR)
        try:
            self._memory = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        if len(self._memory) % _RECORD:
            raise ValueError(f"{path} is not a beats file")
        self._words = memoryview(self._memory).cast("q")
        self._doubles = memoryview(self._memory).cast("d")
        try:
            _check(self._words, path)
        except ValueError:
            self.close()
            raise

    def close(self) -> None:
        self._words.release()
        self._doubles.release()
        self._memory.close()


class BeatWriter(_Mapped):
    """The record of a rank, in that rank. If another process took over its number, all writes are dropped."""

    def __init__(self, path: Path, rank: int, pid: int, role: Role = Role.LAUNCHED) -> None:
        super().__init__(path)
        self.rank = rank
        self._base, self._pid = (rank + 1) * _WORDS, pid
        values = {_PHASE: Phase.STARTUP, _NS: time.monotonic_ns(), _LOWEST: -1, _ROLE: role, _PID: pid}
        # The old record of another process must belong to nobody before it is overwritten.
        for word in range(_PID, _SINCE + 1):
            self._words[self._base + word] = values.get(word, 0) if word != _PID else 0
        self._words[self._base + _PID] = pid

    @property
    def mine(self) -> bool:
        """Whether the record still belongs to this process."""
        return self._words[self._base + _PID] == self._pid

    def grouped(self) -> None:
        """Tells the supervisor that this rank has joined a process group."""
        if self.mine:
            self._words[self._base + _ROLE] |= Role.GROUPED

    def leave(self) -> None:
        """Gives the record up."""
        if self.mine:
            self._words[self._base + _PID] = 0

    def _put(self, word: int, value: int) -> None:
        if self.mine:
            self._words[self._base + word] = value

    def step(self, done: int, source: Source = Source.LOOP) -> None:
        """Tells the supervisor that this rank has finished `done` steps and trains on."""
        words, base = self._words, self._base
        if words[base + _PID] != self._pid:
            return
        words[base + _STEP] = done
        words[base + _PHASE] = Phase.TRAIN
        words[base + _SOURCE] = source
        words[base + _NS] = time.monotonic_ns()

    def phase(self, phase: Phase) -> None:
        """Tells the supervisor that this rank is in `phase` from now on."""
        self._put(_PHASE, phase)
        self._put(_NS, time.monotonic_ns())

    def resume_at(self, step: int | None) -> None:
        """Tells the supervisor that this rank resumes from `step`: earlier steps of the run will not be redone. None:
        the step is unknown."""
        self._put(_STEP, 0 if step is None else step)
        self._put(_LOWEST, UNPLACED if step is None else step)

    def others(self) -> list[int]:
        """The steps from which the other ranks resumed, as far as they know by now."""
        records = range(_WORDS, _WORDS * (self._words[_H_WORLD] + 1), _WORDS)
        return [self._words[base + _LOWEST] for base in records if base != self._base and self._words[base + _PID] > 0]

    def total(self, steps: int) -> None:
        """Tells people that the program will have done `steps` steps at its end."""
        self._put(_TOTAL, steps)

    def loss(self, loss: float, step: int) -> None:
        """Tells people the loss after `step` steps, counted as in step()."""
        words, base = self._words, self._base
        if words[base + _PID] == self._pid:
            self._doubles[base + _LOSS] = loss
            words[base + _TOLD] = step + 1

    def rate(self, lr: float) -> None:
        """Tells people the learning rate."""
        if self._words[self._base + _PID] == self._pid:
            self._doubles[self._base + _LR] = lr

    def doing(self, doing: Doing) -> None:
        """Tells people what takes long now. NONE: it is over."""
        self._put(_DOING, doing)
        self._put(_SINCE, time.monotonic_ns())

    def saved(self) -> None:
        """Counts a save by the script that has returned."""
        if self.mine:
            self._words[self._base + _SAVES] += 1

    def worked(self, nanoseconds: int) -> None:
        """Adds to this rank's own work time. The rank now enters a backward pass, and so the exchange with the
        others."""
        if self.mine:
            self._words[self._base + _OWN] += nanoseconds

    def faults_asked(self) -> int:
        """The number of times that the supervisor added a fault. If it changes, read the faults folder again."""
        return self._words[_H_FAULTS]


def claim(path: Path, rank: int | None, pid: int, role: Role) -> BeatWriter | None:
    """The writer of rank `rank` (None: the first free number) for a process that the script has started. None if
    another living process has the number. The script itself gives its number up as long as it trains nothing."""
    with locked(open_file(path, os.O_RDWR)):
        records = _Mapped(path)
        try:
            words = records._words
            numbers = range(words[_H_WORLD]) if rank is None else [rank]
            free = next((n for n in numbers if 0 <= n < words[_H_WORLD] and _free(words, (n + 1) * _WORDS)), None)
        finally:
            records.close()
        return None if free is None else BeatWriter(path, free, pid, role)


def _free(words: Sequence[int], base: int) -> bool:
    idle = words[base + _ROLE] == Role.LAUNCHED and words[base + _SOURCE] == Source.NONE
    return words[base + _PID] <= 0 or idle or not is_running(words[base + _PID])


def holders(path: Path) -> frozenset[int]:
    """The pids of the processes that are ranks now. Empty if the file cannot be read."""
    return frozenset(beat.pid for beat in last_beats(path))


class BeatReader(_Mapped):
    """All records of an attempt, as the supervisor reads them."""

    def read(self) -> list[Beat]:
        """The beats of the ranks that have registered, in order of rank."""
        return _beats(self._words)

    def ask_faults(self) -> None:
        """Makes every rank read the faults folder at its next step."""
        self._words[_H_FAULTS] += 1
