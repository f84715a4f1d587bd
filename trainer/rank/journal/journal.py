"""The journal of a rank: the script's own saves and loads. They tell from which step the script resumes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec

from ...rundir.environment import Supervised
from ...rundir.files.codec import decode
from ...rundir.layout import RunDir
from ...rundir.records.journal import Saved, find, identity_of
from ...rundir.records.notes import NoteWriter

_MOST_STRANGERS = 1000
"""The number of unknown files that are looked up in the journals: before its first step a script may load a data
set."""
_MOST_FOLDERS = 1000


@dataclass(frozen=True, slots=True)
class Begun:
    """A save under way. `path` None: it goes to no file."""

    path: str | None
    number: int
    step: int
    here: int
    mono: float
    about: Mapping[str, Any]


class Journal:
    """The journal of one rank. It never raises: a journal is not worth a training run."""

    def __init__(self, place: Supervised, rank: int, step: Callable[[], tuple[int, int]], first: int = 0) -> None:
        """`step` returns the true step of this rank, or -1, and the steps that it has made here. Its saves are numbered
        from `first`."""
        self.loaded: list[Saved] = []
        """The saves of this run that were loaded before the first step, each with the path of the loaded file."""
        self.strange = False
        """Whether a loaded file was written since the run began, and by no known save."""
        self.loaded_mono = 0.0
        self._place, self._step = place, step
        self._line = NoteWriter(place.attempt.saves(rank))
        self._numbers = itertools.count(first)
        self._strangers = 0
        self._torn = False
        """Whether torn() has been called before."""
        self._folders: set[str] = set()
        self._since: float | None = None

    def begin(self, path: str | None, by: str, about: Mapping[str, Any]) -> Begun:
        """Records that a save of `path` begins, with the further fields `about` it."""
        begun = Begun(path, next(self._numbers), *self._step(), time.monotonic(), {"how": by, **about})
        if path is not None:
            self._line("save_begun", n=begun.number, path=path, step=begun.step, here=begun.here, **begun.about)
        return begun

    def torn(self, begun: Begun | None) -> bool:
        """Records that from now on a kill would tear the save `begun`. True if it is the first such save."""
        if begun is not None and begun.path is not None:
            self._line("save_in_place", n=begun.number, path=begun.path)
        first, self._torn = not self._torn, True
        return first

    def staged(self, path: str, still: bool) -> None:
        """Records whether a kill would leave the old content of the folder `path` that is being saved into
        (`still`)."""
        self._line("save_beside" if still else "save_in_place", n=-1, path=path)

    def beside(self, folder: str) -> None:
        """Records, once, that files are written beside others in `folder`."""
        if folder not in self._folders and len(self._folders) < _MOST_FOLDERS:
            self._folders.add(folder)
            self._line("beside", folder=folder)

    def end(self, begun: Begun, error: BaseException | None) -> None:
        """Records that the save is done, or why it failed."""
        about = {"n": begun.number, "path": begun.path, "step": begun.step, "here": begun.here, **begun.about}
        if begun.path is None:
            return
        if error is not None:
            self._line("save_failed", **about, error=_words(error))
            return
        known = identity_of(begun.path)
        what = {} if known is None else {key: getattr(known, key) for key in ("size", "content", "inode", "mtime_ns")}
        self._line("save_done", **about, began=round(begun.mono, 6), **what)

    def load(self, path: str, error: BaseException | None) -> bool:
        """Records that a file was loaded before the first step, or could not be. True if that tells something about our
        step."""
        if error is not None:
            self._line("load_failed", path=path, error=_words(error))
            return False
        here = identity_of(path)
        if here is None or self._strangers >= _MOST_STRANGERS:
            return False
        saved = find(self._place.run, path, here)
        if saved is None:
            self._strangers += 1
            if self._place.attempt_number > 0 and here.mtime_ns / 1e9 > self._began():
                self.strange = True
            return self.strange
        self.loaded.append(replace(saved, path=path))
        self.loaded_mono = time.monotonic()
        of = {"attempt_of": saved.attempt, "rank_of": saved.rank, "path_of": saved.path}
        self._line("load_done", path=path, step=saved.step, **of)
        return True

    def retry(self) -> None:
        """Writes the lines that the disk has refused, if it takes them now."""
        self._line.retry()

    def _began(self) -> float:
        if self._since is None:
            self._since = _began(self._place.run)
        return self._since


class _First(msgspec.Struct):
    ts: str


def _began(run: RunDir) -> float:
    """The start of the run by the wall clock, as files have it. Infinity if its events do not say."""
    try:
        with open(run.events, "rb") as file:
            first = decode(file.readline(65536), _First)
        return datetime.fromisoformat(first.ts.replace("Z", "+00:00")).timestamp()
    except (OSError, ValueError, OverflowError):
        return float("inf")


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
