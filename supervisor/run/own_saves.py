"""A script's own saves on the disk: the newest whole one, and what a kill has left beside them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from supervisor.core.saves import Saves, hear
from trainer.rundir.files.untrusted_files import tail
from trainer.rundir.layout import RunDir
from trainer.rundir.records.journal import BESIDE, Saved, identity_of, journals_of, line_of, place_of, saved_of

_TAIL = 256 << 10
"""Bytes of a journal's end that are read: a thousand saves."""
_WHOLE = 8 << 20
"""The same of one that is read but once: each folder is named where it is first saved into."""
_TRIED = 50
"""Saves that are looked for on the disk before it is given up."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A save that is on the disk as it was when it was done. `step` is true, or -1 where that is not known."""

    path: str
    step: int
    written: float
    """By the wall clock."""


def newest_whole(run: RunDir) -> Whole | None:
    """The newest, at the highest step that the newest attempt with one has saved; what was made before the first step is
    none. None also where nothing can be read."""
    for number, saved in zip(range(_TRIED), _newest_first(run), strict=False):
        del number
        if (path := place_of(saved)) is not None and _is_whole(saved, path):
            try:
                return Whole(path, saved.step, os.stat(path).st_mtime)  # noqa: PTH116
            except (OSError, ValueError):
                continue
    return None


def _is_whole(saved: Saved, path: str) -> bool:
    here = identity_of(path)
    return saved.identity is None or (here is not None and here.content == saved.identity.content)


def _newest_first(run: RunDir) -> Iterator[Saved]:
    """The saves that were done, the newest attempt's first, by step and time; each path once an attempt. No file that
    is a part of a folder, and no folder that a rank is not done with."""
    for attempt in reversed(run.attempts()):
        found: dict[str, Saved] = {}
        heard = Saves()
        for rank, path in journals_of(run.attempt(attempt)):
            for raw in tail(path, _TAIL).splitlines():
                if (line := line_of(raw)) is None:
                    continue
                heard = hear(heard, rank, line)
                saved = saved_of(line, attempt, rank)
                if saved is not None and saved.here > 0 and saved.within is None:
                    before = found.get(saved.path)
                    found[saved.path] = saved if before is None or _says_more(saved, before) else before
        for folder in heard.torn():
            found.pop(folder.newest.path, None)
        yield from sorted(found.values(), key=lambda saved: (saved.step, saved.mono), reverse=True)


def _says_more(saved: Saved, before: Saved) -> bool:
    """Of two saves of one path: the later one, but a rank that saw the folder's last file says more than one that did
    not."""
    if saved.ranks and saved.step == before.step and (saved.identity is None) != (before.identity is None):
        return saved.identity is not None
    return saved.mono >= before.mono


def saves_of(run: RunDir, attempt: int) -> Saves:
    """What the journals of that attempt say, for who has not followed them."""
    heard = Saves()
    for rank, path in journals_of(run.attempt(attempt)):
        for raw in tail(path, _WHOLE).splitlines():
            if (line := line_of(raw)) is not None:
                heard = hear(heard, rank, line)
    return heard


def sweep(saves: Saves, mark: str) -> None:
    """Where `saves` were made no hidden folder is left that a rank of the run with this mark was saving in. No rank may
    be alive."""
    for folder in saves.beside | {os.path.dirname(save.path) for save in saves.under_way.values()}:  # noqa: PTH120
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in list(entries):
                if entry.name.startswith(f"{BESIDE}{mark}.") and entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
