"""Beats: passive memory in which each rank leaves its pid, step and phase for the supervisor to read.

One mmapped file an attempt: a header record, then one 64-byte record a rank, each of eight int64 words.
Every word is written whole (aligned, 8 bytes), so a reader sees an old or a new value, never half of one; words are
not consistent with each other, and nothing depends on that. A beat costs no system call, lock, thread or socket.
"""

from __future__ import annotations

import enum
import mmap
import os
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .untrusted_files import open_file, read_file

_WORDS = 8
_RECORD = _WORDS * 8
_MAGIC = 0x5355504552563032  # "SUPERV02": the last two characters are the layout's version
_PID, _STEP, _PHASE, _NS, _SOURCE, _SAVES, _LOWEST, _OWN = range(8)
_H_MAGIC, _H_WORLD, _H_FAULTS = range(3)
UNPLACED = -2
"""In place of the step that a rank went on from, where nothing tells it: its steps are counted from its start alone."""
_LARGEST = 1 << 20
"""Bytes of the largest beats file: that of 16,000 ranks."""


class Phase(enum.IntEnum):
    """What a rank is doing. Each phase has its own limit for being silent."""

    NONE = 0
    STARTUP = 1
    RESTORE = 2
    FIRST_STEP = 3
    TRAIN = 4
    SAVE = 5
    EVAL = 6
    TEARDOWN = 7


class Source(enum.IntEnum):
    """Who writes the steps: nobody yet, the optimizer hook (any script), or a loop that says its phases."""

    NONE = 0
    HOOK = 1
    LOOP = 2


_PHASES, _SOURCES = frozenset(Phase), frozenset(Source)


@dataclass(frozen=True, slots=True)
class Beat:
    """One rank's record as read. `at` is CLOCK_MONOTONIC seconds, one clock for every process of the machine."""

    rank: int
    pid: int
    step: int
    """Steps that are done: of the run, or, with `first_step` UNPLACED, of this process."""
    phase: Phase
    at: float
    source: Source
    saves: int
    """Saves of the script's own that returned, to a file or not: a sign that it keeps its progress."""
    first_step: int
    """The step that this rank went on from (-1 before it is known, UNPLACED if it cannot be)."""
    own: float
    """Seconds from the end of one backward pass to the beginning of the next, added up: what it did not wait for."""

    @property
    def placed(self) -> bool:
        """Whether `step` is one of the run."""
        return self.first_step != UNPLACED


def create_beats(path: Path, world_size: int) -> None:
    """`path` is a beats file for `world_size` ranks, all silent, its blocks allocated so that no write can fail later."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # A full disk must be an OSError here, not a SIGBUS in the middle of training.
        os.posix_fallocate(fd, 0, _RECORD * (world_size + 1))
        with mmap.mmap(fd, 0) as memory, memoryview(memory) as raw, raw.cast("q") as words:
            words[_H_WORLD] = world_size
            for rank in range(world_size):
                words[(rank + 1) * _WORDS + _LOWEST] = -1
            words[_H_MAGIC] = _MAGIC
    finally:
        os.close(fd)


def _check(words: Sequence[int], path: Path) -> None:
    if not words or words[_H_MAGIC] != _MAGIC or not 0 <= words[_H_WORLD] < len(words) // _WORDS:
        raise ValueError(f"{path} is not a beats file of this version")


def _beats(words: Sequence[int]) -> list[Beat]:
    found = []
    for rank in range(words[_H_WORLD]):
        record = list(words[(rank + 1) * _WORDS : (rank + 2) * _WORDS])
        if record[_PID] > 0:
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
                )
            )
    return found


def last_beats(path: Path) -> list[Beat]:
    """The beats that the ranks have left in `path`, as they stand now; none where that is not to be read. Maps nothing and
    writes nothing: for whoever asks about a run that may be somebody else's."""
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
        try:
            _check(self._words, path)
        except ValueError:
            self.close()
            raise

    def close(self) -> None:
        self._words.release()
        self._memory.close()


class BeatWriter(_Mapped):
    """A rank's own record, in the rank."""

    def __init__(self, path: Path, rank: int, pid: int) -> None:
        super().__init__(path)
        self._base = (rank + 1) * _WORDS
        self._put(_PHASE, Phase.STARTUP)
        self._put(_NS, time.monotonic_ns())
        self._put(_PID, pid)

    def _put(self, word: int, value: int) -> None:
        self._words[self._base + word] = value

    def step(self, done: int, source: Source = Source.LOOP) -> None:
        """The supervisor can read that this rank has finished `done` steps and trains on."""
        words, base = self._words, self._base
        words[base + _STEP] = done
        words[base + _PHASE] = Phase.TRAIN
        words[base + _SOURCE] = source
        words[base + _NS] = time.monotonic_ns()

    def phase(self, phase: Phase) -> None:
        """The supervisor can read that this rank is in `phase` since now."""
        self._put(_PHASE, phase)
        self._put(_NS, time.monotonic_ns())

    def resume_at(self, step: int | None) -> None:
        """The supervisor can read that this rank goes on from `step`: nothing of the run before it will be redone. None: from
        one that nothing tells."""
        self._put(_STEP, 0 if step is None else step)
        self._put(_LOWEST, UNPLACED if step is None else step)

    def others(self) -> list[int]:
        """What the other ranks went on from, as far as each knows by now."""
        records = range(_WORDS, _WORDS * (self._words[_H_WORLD] + 1), _WORDS)
        return [self._words[base + _LOWEST] for base in records if base != self._base and self._words[base + _PID] > 0]

    def saved(self) -> None:
        """One more save of the script's own has returned."""
        self._words[self._base + _SAVES] += 1

    def worked(self, nanoseconds: int) -> None:
        """So much more of its own work is done: it enters a backward pass, and with it the exchange with the others."""
        self._words[self._base + _OWN] += nanoseconds

    def faults_asked(self) -> int:
        """How often the supervisor has said that a fault was added: when it changes, read the faults folder again."""
        return self._words[_H_FAULTS]


class BeatReader(_Mapped):
    """All records of an attempt, in the supervisor."""

    def read(self) -> list[Beat]:
        """The beats of the ranks that have registered, by rank."""
        return _beats(self._words)

    def ask_faults(self) -> None:
        """Every rank looks into the faults folder at its next step."""
        self._words[_H_FAULTS] += 1
