"""pace.json: what a run has shown of its speed, for the supervisor that takes it up next."""

from __future__ import annotations

import contextlib

import msgspec

from supervisor.core.hangs.timings import WINDOW, Pace
from trainer.rundir.files.codec import Seconds, encode, read
from trainer.rundir.layout import RunDir

_EVERY = 30.0
_LARGEST = 1 << 16


class _Kept(msgspec.Struct):
    recent: tuple[Seconds, ...] = ()
    slowest: Seconds = 0.0
    phases: dict[str, Seconds] = {}
    restart: Seconds | None = None


class Paces:
    """Of one run. A file that is lost, or cannot be read, costs nothing but having to learn again: it is not synced."""

    def __init__(self, run: RunDir) -> None:
        self._path = run.pace
        self._kept = self.last()
        self._at = 0.0

    def last(self) -> Pace:
        """As it was left."""
        try:
            kept = read(self._path, _Kept, _LARGEST)
            return Pace(kept.recent[-WINDOW:], kept.slowest, kept.phases, kept.restart)
        except (OSError, ValueError):
            return Pace()

    def keep(self, pace: Pace, now: float) -> None:
        """It is kept from time to time."""
        if now >= self._at + _EVERY:
            self._at = now
            self.write(pace)

    def write(self, pace: Pace) -> None:
        """It is kept, if the disk allows it."""
        if pace == self._kept:
            return
        self._kept = pace
        new = self._path.with_name(f".{self._path.name}.new")
        with contextlib.suppress(OSError):
            new.write_bytes(encode(pace))
            new.replace(self._path)
