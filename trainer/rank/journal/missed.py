"""The save that a script should load, and has not: with [policy] started_over = "stop" nothing may be saved over it.

A wrong stop is worse than a missed one. So whatever may be a load of it counts: a wrapped load also after the first
step, and any open for reading of a file like it, which may be read by hand (into a buffer, by pickle).
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ...errors import StartedOver
from ...rundir.records.beats import UNPLACED
from . import wrapping

_DIGITS = re.compile(r"\d+")


class Missed:
    """The newest save of earlier attempts, at `saved` (absolute, without links). A file `told` is made when something
    may have loaded it: one rank may load for all, and hand on what it has."""

    def __init__(self, saved: str, told: Path) -> None:
        self.saved = saved
        self._told = told
        self.read = False
        """Whether something may have loaded it."""
        self._folder, self._ending = os.path.split(saved)[0], os.path.splitext(saved)[1]
        sys.addaudithook(self._heard)

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        # A hook stays until the process ends, and hears of everything: the first test must be cheap.
        if self.read or event != "open" or wrapping.listener() is None:
            return
        path, mode, _ = args
        # Our own reads are by os.open, which has no mode.
        if isinstance(path, str) and isinstance(mode, str) and ("r" in mode or "+" in mode):
            self.loaded(path)

    def loaded(self, path: str) -> None:
        """`path` is read."""
        try:
            path = os.path.realpath(path)
        except (OSError, ValueError):
            return
        beside = os.path.dirname(path) == self._folder and self._ending and path.endswith(self._ending)
        if not self.read and (beside or self._is_in(path)):
            self.read = True
            with contextlib.suppress(OSError):
                self._told.touch()

    def _is_in(self, path: str) -> bool:
        return path == self.saved or path.startswith(self.saved + os.sep)

    def guard(
        self, path: str, stepped: bool, others: Collection[int], failed: Callable[[BaseException, int], object]
    ) -> None:
        """Ends this process if its save to `path` would be at the cost of the one that it has missed, and no other rank
        has loaded that (`others` as beats have them). No code of the script runs any more: it might save all the
        same."""
        if (
            self.read
            or self._told.exists()
            or any(step == UNPLACED or step > 0 for step in others)
            or not self.is_harmed(path, stepped)
        ):
            return
        text = f"it has not loaded {self.saved}, and was about to save {path}; nothing was written over"
        failed(StartedOver(text), 1)
        with contextlib.suppress(Exception):
            print(f"supervise: started over: {text}", file=sys.stderr, flush=True)
            sys.stdout.flush()
        os._exit(1)

    def is_harmed(self, path: str, stepped: bool) -> bool:
        """Whether a save to `path` would harm it, or begin another one of its kind. Before the first step a script may
        save what it wants beside it."""
        if self._is_in(path) or self.saved.startswith(path + os.sep):
            return True
        return stepped and (os.path.lexists(path) or _kind(path) == _kind(self.saved))


def _kind(path: str) -> str:
    return _DIGITS.sub("#", path)
