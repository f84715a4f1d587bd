"""The help for a tracker's hook in a rank: the choices of earlier attempts, and the program's position."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from ...rundir.files.codec import encode, read
from ...rundir.files.durable import replace_soon
from ...rundir.layout import RunDir
from ..progress import Position, progress


class _Chosen(msgspec.Struct, frozen=True):
    key: str
    value: str


class GoingOn:
    """The help for the trackers of one process. If not `later`, this is the first attempt, or one that begins anew.
    Then it notes the choices and changes nothing."""

    def __init__(self, run: RunDir, later: bool) -> None:
        self.later = later
        self.since = time.time()
        """The start of this process's program, by the clock of file times."""
        self._run = run
        self._asked: Counter[str] = Counter()

    def recall(self, key: str, choose: Callable[[], str]) -> str:
        """The choice of an earlier attempt, for the same `key` and the same count of calls with it. If there is none,
        it is the result of `choose`, which is kept for later attempts."""
        self._asked[key] += 1
        key = f"{key} {self._asked[key]}"
        path = self._run.trackers / (hashlib.sha256(key.encode()).hexdigest()[:16] + ".json")
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

    def position(self) -> Position | None:
        """The program's position. None while it is not known: before the program has loaded something or made a
        step."""
        return progress().position()

    def before_saves(self, flush: Callable[[], object]) -> None:
        """`flush` is called when the program begins to save. So a kill does not lose points from before a
        checkpoint."""
        progress().before_saves.append(flush)
