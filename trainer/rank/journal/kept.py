"""Keeps what a run had saved when it starts over: each file gets a second name, whatever becomes of the first.

    RUN/kept/step-00000060/NAME
    DIR/.kept/step-00000060/NAME    if DIR, where the save is, is on another file system

NAME is that of the save, a file or a folder; if there are two of one name, their folders' names are before it. One
generation is kept, that of the furthest step, with some others that were there (a best model). A script that starts
over again and again does not replace it by less. A file that is written over in place is lost under both names: what
is known to be written so is not said to be kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...rundir.layout import RunDir, step_name, step_of
from ...rundir.variables import PLAIN_SAVES, RUN_DIR

_BESIDE = ".kept"


def keep_all(newest: str, others: Iterable[str], step: int) -> Path | None:
    """The second name of `newest`, which is of `step`. The `others` that were saved beside it are kept with it."""
    kept = keep(Path(newest), step)
    for other in others if kept is not None else ():
        keep(Path(other), step)
    return kept


def keep(save: Path, step: int) -> Path | None:
    """The second name of `save` (absolute, without links), which is of `step` (-1: not known). None if it has none: it
    is not there, no link can be made, what is kept is of a later step, or the script's next save would write over it in
    place (--plain-saves, links of its own)."""
    with contextlib.suppress(OSError):
        found = save.stat()
        device, shared = found.st_dev, save.is_file() and found.st_nlink - names(str(save), found) > 1
        if shared or os.environ.get(PLAIN_SAVES):
            return None
        for folder in _folders(save.parent):
            if folder.parent.stat().st_dev == device:
                return _link(save, folder, max(0, step))
    return None


def names(path: str, of: os.stat_result) -> int:
    """The number of names that keep() has given to the file at `path`, the stat of which is `of`."""
    # Not rglob(): another rank may remove an older generation meanwhile.
    folders = (inner for folder in _folders(Path(path).parent) for inner, *_ in os.walk(folder))
    return sum(_is(Path(inner, os.path.basename(path)), of) for inner in folders)


def _folders(beside: Path) -> Iterator[Path]:
    if run := os.environ.get(RUN_DIR):
        yield RunDir(Path(run)).kept
    # The file may be in a folder that was kept as a whole.
    for folder in (beside, *beside.parents[:2]):
        yield folder / _BESIDE


def _is(path: Path, of: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.lstat(), of)
    except OSError:
        return False


def _link(save: Path, folder: Path, step: int) -> Path | None:
    older = []
    for each in folder.glob("step-*"):
        other = step_of(each.name)
        if other is not None and other > step:
            return None
        if other is not None and other < step:
            older.append(each)
    kept = folder / step_name(step) / save.name
    if save.is_file() and kept.exists() and not kept.samefile(save):
        kept = kept.parent / save.parent.name / save.name
    files = [save] if save.is_file() else [each for each in save.rglob("*") if each.is_file()]
    for file in files:
        to = kept / file.relative_to(save)
        to.parent.mkdir(parents=True, exist_ok=True)
        # Another rank may have been faster.
        with contextlib.suppress(FileExistsError):
            os.link(file, to)
    if not files:
        return None
    for each in older:
        shutil.rmtree(each, ignore_errors=True)
    return kept
