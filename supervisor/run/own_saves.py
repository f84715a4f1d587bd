"""A script's own saves on the disk: the newest whole one, and the leftovers of a kill beside them."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from supervisor.core.own_saves.holdings import is_sure
from supervisor.core.own_saves.saves import Saves, hear
from trainer.rundir.layout import RunDir
from trainer.rundir.records.journal import BESIDE, Saved, journals_of, lines_of, saved_of, whole_place

_TAIL = 256 << 10
"""Bytes that are read from the end of a journal: a thousand saves."""
_WHOLE = 8 << 20
"""The same for a journal that is read only once. A folder is named at the first save into it."""
_TRIED = 50
"""The most saves that are looked for on the disk."""


class Journals:
    """The journals of `run`. Whoever asks again and again, as a supervisor does at each launch, keeps this: a run may
    have thousands of attempts, and none with a save."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._none: set[int] = set()
        """Attempts that are over, and have no journal."""

    def newest_first(self) -> Iterator[int]:
        """The numbers of the attempts with a journal."""
        numbers = self.run.attempts()
        for number in reversed(numbers):
            if number in self._none:
                continue
            if journals_of(self.run.attempt(number)):
                yield number
            elif number != numbers[-1]:
                # No process of it is left that could begin one.
                self._none.add(number)


@dataclass(frozen=True, slots=True)
class Whole:
    """A save that is unchanged on the disk. `step` is the true step, or -1 if it is not known."""

    path: str
    step: int
    written: float
    """The time, by the wall clock."""


def newest_whole(journals: Journals) -> Whole | None:
    """The newest whole save: at the highest step of the newest attempt that has one. One that is surely to be resumed
    from goes before all others of the run. A save from before the first step does not count. None if there is no save,
    or nothing can be read."""
    for saved in itertools.islice(_newest_first(journals), _TRIED):
        if (path := whole_place(saved)) is not None:
            try:
                return Whole(path, saved.step, os.stat(path).st_mtime)
            except (OSError, ValueError):
                continue
    return None


def _newest_first(journals: Journals) -> Iterator[Saved]:
    """The finished saves, the newest attempt first, by step and time; those that are surely to be resumed from before
    all others. Each path comes once in an attempt. Files that are part of a folder, and folders that a rank has not
    finished, are left out."""
    others: list[list[Saved]] = []
    for attempt in journals.newest_first():
        found: dict[str, Saved] = {}
        sure: set[str] = set()
        heard = Saves()
        for rank, line in lines_of(journals.run.attempt(attempt), _TAIL):
            heard = hear(heard, rank, line)
            saved = saved_of(line, attempt, rank)
            if saved is not None and saved.here > 0 and saved.within is None:
                before = found.get(saved.path)
                found[saved.path] = saved if before is None or says_more(saved, before) else before
                if is_sure(os.path.basename(saved.path), line):
                    sure.add(saved.path)
        for folder in heard.torn():
            found.pop(folder.newest.path, None)
        ordered = sorted(found.values(), key=lambda saved: (saved.step, saved.mono), reverse=True)
        yield from (saved for saved in ordered if saved.path in sure)
        others += [left] if (left := [saved for saved in ordered if saved.path not in sure]) else []
        if len(others) >= _TRIED:
            break
    yield from itertools.chain(*others)


def says_more(saved: Saved, before: Saved) -> bool:
    """Whether `saved` says more than `before` about the same path. The later save does. But if several ranks save into
    one folder, the rank that saw the folder's last file says more."""
    if saved.ranks and saved.step == before.step and (saved.identity is None) != (before.identity is None):
        return saved.identity is not None
    return saved.mono >= before.mono


def saves_of(run: RunDir, attempt: int) -> Saves:
    """The saves in the journals of that attempt, for a caller that has not followed them."""
    heard = Saves()
    for rank, line in lines_of(run.attempt(attempt), _WHOLE):
        heard = hear(heard, rank, line)
    return heard


def sweep(saves: Saves, mark: str) -> None:
    """In the places of `saves`, no hidden folder is left that a rank of the run with this mark used for saving. Call it
    only when no rank is alive."""
    # Ranks on other nodes have a mark of their node.
    ours = (f"{BESIDE}{mark}.", f"{BESIDE}{mark}-n")
    for folder in saves.beside | {os.path.dirname(save.path) for save in saves.under_way.values()}:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in list(entries):
                if entry.name.startswith(ours) and entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
