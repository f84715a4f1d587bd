"""The help for a tracker's hook in a rank: the choices of earlier attempts, and the program's position."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from ...rundir.files.codec import encode, read
from ...rundir.files.durable import replace_soon
from ...rundir.layout import RunDir
from ...rundir.records.boards import Board, Numbers, is_training_loss
from ..progress import Position, progress

_MOST_FLUSHED = 100
"""Points between a save and the next step that are each written to disk at once."""

_LOOK_EVERY = 1.0
"""Seconds between two looks for the run's numbers."""


class _Chosen(msgspec.Struct, frozen=True):
    key: str
    value: str


class GoingOn:
    """The help for the trackers of one process. If not `later`, this is the first attempt, or one that begins anew.
    Then it notes the choices and changes nothing."""

    def __init__(self, run: RunDir, later: bool, numbers: bool = False) -> None:
        """`numbers`: the program's trackers get those of the run, too."""
        self.later = later
        self.since = time.time()
        """The start of this process's program, by the clock of file times."""
        self._run = run
        self._asked: Counter[str] = Counter()
        self._flushes: list[Callable[[], object]] = []
        self._saved_at = -1
        self._flushed = 0
        self._loss = ""
        """The name under which the program logs the loss of its training, once it has."""
        self._numbers = numbers
        self._seen, self._look_at = 0, 0.0
        progress().before_saves.append(self._saving)

    def recall(self, key: str, choose: Callable[[], str]) -> str:
        """The choice of an earlier attempt, for the same `key` and the same count of calls with it. If there is none,
        it is the result of `choose`, which is kept for later attempts."""
        self._asked[key] += 1
        key = f"{key} {self._asked[key]}"
        path = self.file(key, ".json")
        if self.later:
            with contextlib.suppress(OSError, ValueError):
                chosen = read(path, _Chosen)
                if chosen.key == key:
                    return chosen.value
        value = choose()
        with contextlib.suppress(OSError, ValueError):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            replace_soon(path, encode(_Chosen(key, value)))
        return value

    def file(self, key: str, suffix: str) -> Path:
        """The place of a file about `key` that all attempts share."""
        return self._run.trackers / (hashlib.sha256(key.encode()).hexdigest()[:16] + suffix)

    def board(self, folder: str) -> None:
        """The program writes for TensorBoard into that folder. The pages of the run read it."""
        with contextlib.suppress(OSError):
            self._run.trackers.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(self._run.boards, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, encode(Board(folder)) + b"\n")
            finally:
                os.close(fd)

    def position(self) -> Position | None:
        """The program's position. None while it is not known: before the program has loaded something or made a
        step."""
        return progress().position()

    def before_saves(self, flush: Callable[[], object]) -> None:
        """`flush` is called when the program begins to save, and raises nothing. So a kill does not lose points from
        before a checkpoint."""
        self._flushes.append(flush)

    def just_saved(self) -> bool:
        """Whether the program has saved since its last step: some log that step only then."""
        if self._saved_at < 0 or self._flushed >= _MOST_FLUSHED:
            return False
        self._flushed += 1
        at = self.position()
        if at is None or at.done != self._saved_at:
            self._saved_at = -1
        return self._saved_at >= 0

    def told(self, tag: str, value: float) -> None:
        """The program logs a number. If it is the loss of its training, people see it."""
        if (tag == self._loss or not self._loss) and is_training_loss(tag):
            self._loss = tag
            progress().told(loss=value)

    def numbers(self) -> dict[str, float]:
        """The numbers of the run, by name. Empty if they are not asked for, or have not changed since the last call."""
        now = time.monotonic()
        if not self._numbers or now < self._look_at:
            return {}
        self._look_at = now + _LOOK_EVERY
        with contextlib.suppress(OSError, ValueError):
            written = self._run.numbers.stat().st_mtime_ns
            if written != self._seen:
                self._seen = written
                return read(self._run.numbers, Numbers).series()
        return {}

    def _saving(self) -> None:
        at = self.position()
        self._saved_at, self._flushed = (-1 if at is None else at.done), 0
        for flush in self._flushes:
            flush()
