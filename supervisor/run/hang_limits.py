"""pace.json: the speed that a run has shown, for the next supervisor of the run."""

from __future__ import annotations

import contextlib

import msgspec

from supervisor.core.hangs.timings import WINDOW, Pace
from trainer.rundir.files.codec import Seconds, encode, read
from trainer.rundir.layout import RunDir

_EVERY = 5.0
"""Seconds. `status` shows the time of a step from there."""
_LARGEST = 1 << 16


class _Kept(msgspec.Struct):
    recent: tuple[Seconds, ...] = ()
    slowest: Seconds = 0.0
    longest: Seconds = 0.0
    phases: dict[str, Seconds] = {}
    calls: dict[str, Seconds] = {}
    restart: Seconds | None = None


class Paces:
    """The pace of one run. If the file is lost or cannot be read, the speed is learned again. So the file is not
    synced."""

    def __init__(self, run: RunDir) -> None:
        self._path = run.pace
        self._kept = self.last()
        self._at = 0.0

    def last(self) -> Pace:
        """The pace that the last supervisor left."""
        try:
            kept = read(self._path, _Kept, _LARGEST)
            return Pace(kept.recent[-WINDOW:], kept.slowest, kept.longest, kept.phases, kept.calls, kept.restart)
        except (OSError, ValueError):
            return Pace()

    def keep(self, pace: Pace, now: float) -> None:
        """Writes it from time to time."""
        if now >= self._at + _EVERY:
            self._at = now
            self.write(pace)

    def write(self, pace: Pace) -> None:
        """Writes it, if the disk allows it."""
        if pace == self._kept:
            return
        self._kept = pace
        new = self._path.with_name(f".{self._path.name}.new")
        with contextlib.suppress(OSError):
            new.write_bytes(encode(pace))
            new.replace(self._path)
