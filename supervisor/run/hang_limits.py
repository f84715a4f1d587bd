"""pace.json: what a run has shown of its speed, for the supervisor that takes it up next."""

from __future__ import annotations

import contextlib
import json

from supervisor.core.hangs.timings import Pace, from_json, to_json
from trainer.rundir.files.untrusted_files import read_file
from trainer.rundir.layout import RunDir

_EVERY = 30.0
_LARGEST = 1 << 16


class Paces:
    """Of one run. A file that is lost, or cannot be read, costs nothing but having to learn again: it is not synced."""

    def __init__(self, run: RunDir) -> None:
        self._path = run.pace
        self._kept = self.last()
        self._at = 0.0

    def last(self) -> Pace:
        """As it was left."""
        try:
            return from_json(json.loads(read_file(self._path, _LARGEST)))
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
            new.write_text(json.dumps(to_json(pace)))
            new.replace(self._path)
