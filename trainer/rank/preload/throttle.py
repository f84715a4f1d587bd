"""Work beside a training that uses all cores: the work takes the part that is free, or a quarter of one core.

It does not use nice: later forks would inherit the niceness, and only root can lower it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_SLICE = 0.01
"""Seconds of CPU between two looks."""
_LOOK_EVERY = 0.2
_SHARE = 0.25
_FREE = 0.9
"""If this share of a core is idle or used by us, nobody else wants that core."""
_LONGEST = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Throttle:
    """`rest()` is called between pieces of the work. What it has waited for a core by then is part of its rest."""

    def __init__(self, sleep: Callable[[float], object] = time.sleep) -> None:
        self._sleep = sleep
        self._crowded = True
        self._seen = self._used = time.process_time()
        self._at = self._rested = time.monotonic()
        self._idle = _idle()

    def rest(self) -> None:
        """If others want the cores: sleeps, until the work since the last call fits our share."""
        used = time.process_time() - self._used
        if used < _SLICE:
            return
        self._look()
        if self._crowded and (left := used / _SHARE - (time.monotonic() - self._rested)) > 0:
            self._sleep(min(_LONGEST, left))
        self._used, self._rested = time.process_time(), time.monotonic()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._at < _LOOK_EVERY:
            return
        seen, idle = time.process_time(), _idle()
        free = (idle - self._idle + seen - self._seen) / (now - self._at)
        self._crowded = free < _FREE
        self._at, self._seen, self._idle = now, seen, idle


def _idle() -> float:
    """Idle seconds of all cores together."""
    try:
        fields = Path("/proc/stat").read_bytes().split(b"\n", 1)[0].split()
        return (int(fields[4]) + int(fields[5])) / _TICKS
    except (OSError, ValueError, IndexError):
        return 0.0
