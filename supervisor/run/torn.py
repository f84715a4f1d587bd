"""Folders that an attempt was saving into when it ended. They are renamed. So the next attempt does not take them for
checkpoints.

    out/checkpoint-500  ->  out/.torn-checkpoint-500-a0

RUN/torn.jsonl has both names. `supervise ckpt restore-torn` gives a folder its old name back. Nothing is copied. A
folder that may be something other than a checkpoint is not touched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from supervisor.core.own_saves.folders import is_numbered, is_whole, set_aside
from supervisor.core.own_saves.saves import Folder, Save, Saves
from trainer.rundir.files.codec import decode, encode
from trainer.rundir.files.durable import DISK, append_line
from trainer.rundir.files.untrusted_files import open_file, read_file
from trainer.rundir.layout import RunDir
from trainer.rundir.records.journal import TORN


class SetAside(msgspec.Struct):
    """A renamed folder, as torn.jsonl has it."""

    path: str
    moved_to: str
    attempt: int = -1
    step: int = -1


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for a folder that was being saved into. If it had to stay, `moved_to` is empty and `problem` is the
    reason."""

    path: str
    moved_to: str
    step: int
    problem: str = ""


def clear(run: RunDir, attempt: int, saves: Saves, kept: Collection[str]) -> list[Outcome]:
    """`attempt` is over. Every folder that it has left half made is set aside, unless the folder holds one of the paths
    `kept`."""
    outcomes = []
    for save in [*_half_made(saves), *(folder.newest for folder in saves.torn() if not _says_whole(folder))]:
        if not os.path.isdir(save.path):
            continue
        moved_to = ""
        try:
            problem = _problem(save, saves, [*kept, str(run.path)])
            if not problem:
                moved_to = _free(set_aside(save.path, attempt, TORN))
                _record(run, SetAside(save.path, moved_to, attempt, save.step))
                DISK.rename(Path(save.path), Path(moved_to))
        except OSError as error:
            moved_to, problem = "", error.strerror or str(error)
        outcomes.append(Outcome(save.path, moved_to, save.step, problem))
    return outcomes


def _half_made(saves: Saves) -> list[Save]:
    """Numbered folders that the program made, and in which a file is missing."""
    found = {}
    for save in saves.cut():
        parent, known = os.path.dirname(save.path), saves.folders
        missing = save.beside and save.within is None and not os.path.lexists(save.path)
        if missing and parent not in known and is_numbered(os.path.basename(parent)):
            found[parent] = replace(save, path=parent)
    return list(found.values())


def _says_whole(folder: Folder) -> bool:
    """Whether the folder's own files show that it is whole, although the journal does not. Then its rank died right
    after the last file."""
    # If we have to wait for a CPU between the two clocks, it comes out too early.
    boot = max(time.time() - time.monotonic() for _ in range(3))
    files = {}
    with contextlib.suppress(OSError), os.scandir(folder.newest.path) as entries:
        files["."] = os.stat(folder.newest.path).st_mtime
        for entry in itertools.islice(entries, 10_000):
            files[entry.name] = entry.stat(follow_symlinks=False).st_mtime
    return is_whole(files, folder.newest.ranks, boot + folder.newest.at)


def _problem(save: Save, saves: Saves, kept: Collection[str]) -> str:
    """The reason why the folder must stay in its place. Empty if it can be renamed."""
    inside = f"{save.path.rstrip('/')}/"
    if any(f"{path}/".startswith(inside) for path in kept):
        return "the run itself is in it"
    others = (*saves.done, *saves.folders)
    if any(path.startswith(inside) and "/" in path[len(inside) :] for path in others):
        return "other saves are in folders below it"
    if os.path.ismount(save.path):
        return "it is a mount"
    if os.stat(save.path).st_uid != os.geteuid():
        return "it belongs to another user"
    return ""


def _free(path: str) -> str:
    """`path`, or `path` with a number, so that nothing of that name exists yet."""
    names = itertools.chain([path], (f"{path}.{number}" for number in itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))


def _record(run: RunDir, aside: SetAside) -> None:
    fd = open_file(run.torn, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        append_line(fd, encode(aside))
    finally:
        os.close(fd)


def all_set_aside(run: RunDir) -> list[SetAside]:
    """Every folder of this run that still has the new name, in the order of the renames."""
    try:
        lines = read_file(run.torn).splitlines()
    except OSError:
        return []
    found = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            aside = decode(line, SetAside)
            found[aside.moved_to] = aside
    return [aside for aside in found.values() if _is_folder(aside.moved_to) and os.path.isabs(aside.path)]


def restore(aside: SetAside) -> None:
    """The folder has its old name again. FileExistsError if something else has that name now. OSError as the system
    says."""
    if os.path.lexists(aside.path):
        raise FileExistsError(f"{aside.path} is there again")
    DISK.rename(Path(aside.moved_to), Path(aside.path))


def _is_folder(path: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return stat.S_ISDIR(os.lstat(path).st_mode) and os.path.basename(path).startswith(TORN)
    return False
