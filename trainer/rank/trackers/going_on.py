"""What a tracker's hook in a rank is given: what earlier attempts chose, and where the program is."""

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
    """Of one process. Not `later`: this is the first attempt, or one that begins anew. It notes its choices and changes
    nothing."""

    def __init__(self, run: RunDir, later: bool) -> None:
        self.later = later
        self.since = time.time()
        """The start of this process's program, as files have it."""
        self._run = run
        self._asked: Counter[str] = Counter()

    def recall(self, key: str, choose: Callable[[], str]) -> str:
        """What an earlier attempt chose at this place: for the `key`, when asked as often as now. Without that, what
        `choose` returns, which later attempts will get."""
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
        """Where the program is. None while that is not known: before it has loaded something, or made a step."""
        return progress().position()

    def before_saves(self, flush: Callable[[], object]) -> None:
        """`flush` is called when the program begins to save: what a checkpoint follows is not lost to a kill."""
        progress().before_saves.append(flush)
