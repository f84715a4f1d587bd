"""The journal of a program's own saves and loads: `saves.rank0.jsonl` in the attempt's folder. Each entry is a JSON
line, and each file has one writer.

    save_begun     {n, path, step, here, how, …}               a save begins; `n` tells this rank's saves apart
    save_done      {n, path, step, here, how, …, began, size, content, inode, mtime_ns}
    save_failed    {n, path, step, here, how, …, error}
    save_in_place  {n, path}                                   it began beside, and now writes over the old content
    save_beside    {n, path}                                   a whole folder is written beside, then exchanged
    beside         {folder}                                    files are written beside those in it: .saving-*/
    load_done      {path, step, attempt_of, rank_of, path_of}  before the first step; `step` is that of the loaded save
    load_failed    {path, error}

`…` stands for fields that not every save has. `beside` true: the file is written beside and renamed, so a kill leaves
the old content. `ranks`: the path is a folder, a checkpoint of several files; so many ranks save into it, and it is
whole once all are done. `within`: the file is part of that folder. `holds` [key, …]: the top keys of a saved dict, or
the first of them. `training`: the number of the framework's training that saved, of all that the program calls;
-1: a trial of a search.
`durable.jsonl` in the same folder is written by a helper that syncs finished saves: {rank, n, path}.

Every line also has `mono`. `step` is the true step, counted from the start of the run over all attempts; -1 if not
known. `here`: the steps that this process has made. `path` is absolute, with links resolved. A save is torn if it began
and was neither done nor failed when its attempt ended. The files may come from anybody: a reader takes the lines that
it understands and skips the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.json_lines import object_of
from ..files.untrusted_files import tail
from ..layout import AttemptDir, RunDir

_HEAD, _TAIL = 4096, 65536
"""Bytes at both ends of a file that identify its content: there a zip archive of torch.save has its sums."""
_SEARCHED = 64 << 20
"""Bytes of journals that a search reads, the newest first: some 200,000 saves."""
SIGNS = (".metadata", "trainer_state.json", "random_states_0.pkl")
"""The last files that torch.distributed.checkpoint, Hugging Face's Trainer and accelerate write into a checkpoint
folder."""
TORN = ".torn-"
"""The prefix of a folder that was set aside, because a save into it never finished."""
BESIDE = ".saving-"
"""The prefix of a folder that holds a file until the file is whole."""
_MOST_ENTRIES = 10_000
_MOST_ALIKE = 1000
"""Saves of one rank that are checked, if all of them look alike."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The fields by which a file is recognised, also under another name and as a copy."""

    content: str
    """The size and a digest of both ends."""
    inode: int
    mtime_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A finished save, as the journal has it."""

    path: str
    step: int
    """The true step, or -1 if not known."""
    identity: Identity | None
    attempt: int
    rank: int
    mono: float
    here: int = 0
    """Steps that its process had made. With 0, the save is no progress of its attempt."""
    ranks: int = 0
    """For a folder, a checkpoint of several files: the number of ranks that write into it, each with a save of its own.
    0 for a file."""
    within: str | None = None
    """For a file: the folder of which it is a part."""
    how: str = ""
    """The saving function."""


def identity_of(path: str) -> Identity | None:
    """The identity of a regular file, or of a torch.distributed.checkpoint folder. None for anything else."""
    try:
        found = os.stat(path)  # A link is what it leads to.
        if stat.S_ISDIR(found.st_mode):
            return _of_folder(path)
        if not stat.S_ISREG(found.st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        ends = os.pread(fd, _HEAD, 0) + os.pread(fd, _TAIL, max(0, found.st_size - _TAIL))
    except OSError:
        return None
    finally:
        os.close(fd)
    return Identity(f"{found.st_size:x}-{_digest(ends)}", found.st_ino, found.st_mtime_ns, found.st_size)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _of_folder(path: str) -> Identity | None:
    """The identity by the file that is written last. Its content says little: it lists the same tensors each time."""
    if (found := _sign(path)) is None:
        return None
    size = 0
    with os.scandir(path) as entries:
        for _, entry in zip(range(_MOST_ENTRIES), entries, strict=False):
            size += entry.stat().st_size
    content = f"{size:x}-{_digest(f'{found.st_ino} {found.st_mtime_ns} {found.st_size}'.encode())}"
    return Identity(content, found.st_ino, found.st_mtime_ns, size)


def _sign(path: str, follow_symlinks: bool = True) -> os.stat_result | None:
    """The stat of the first of SIGNS that is in the folder."""
    for name in SIGNS:
        with contextlib.suppress(OSError):
            return os.stat(os.path.join(path, name), follow_symlinks=follow_symlinks)
    return None


def find(run: RunDir, path: str, here: Identity) -> Saved | None:
    """The save that wrote the content of `path`, whose identity is `here`: that of the same file, or of a copy, under
    any name. Else a save to that path that began and was never reported done. None if this run did not write it."""
    same: list[Saved] = []
    newest: tuple[float, int, Saved | None] | None = None
    name = json.dumps(path).encode()
    for attempt, rank, data in _journals(run):
        for line in itertools.islice(_with(data, here.content.encode()), _MOST_ALIKE):
            saved = saved_of(line, attempt, rank)
            if saved is not None and saved.identity is not None and saved.identity.content == here.content:
                same.append(saved)
        if newest is None or newest[1] == attempt:
            about = next((line for line in _with(data, name) if _is_about(line, path)), None)
            if about is not None and (newest is None or _number(about, "mono") > newest[0]):
                newest = _number(about, "mono"), attempt, _whole_by_now(about, attempt, rank)
    if same:
        return max(same, key=lambda saved: (_is_file(saved, here), saved.path == path, saved.attempt, saved.mono))
    return newest[2] if newest is not None else None


def _is_about(line: dict[str, Any], path: str) -> bool:
    return line.get("path") == path and str(line["kind"]).startswith("save_")


def _is_file(saved: Saved, here: Identity) -> bool:
    known = saved.identity
    return known is not None and (known.inode, known.mtime_ns) == (here.inode, here.mtime_ns)


def _whole_by_now(line: dict[str, Any], attempt: int, rank: int) -> Saved | None:
    """The save in the newest line about a path. The file there is readable, and the journal does not describe it."""
    if line.get("kind") == "save_begun":
        return Saved(str(line["path"]), _step(line), None, attempt, rank, _number(line, "mono"))
    saved = saved_of(line, attempt, rank)
    return saved if saved is not None and saved.identity is None else None


def _journals(run: RunDir) -> Iterator[tuple[int, int, bytes]]:
    """(attempt, rank, content) of each journal, the newest attempt first, up to _SEARCHED bytes."""
    left = _SEARCHED
    for attempt in reversed(run.attempts()):
        for rank, path in journals_of(run.attempt(attempt)):
            data = tail(path, left)
            left -= len(data)
            if data:
                yield attempt, rank, data
            if left <= 0:
                return


def journals_of(folder: AttemptDir) -> list[tuple[int, Path]]:
    """The journals of an attempt, with their ranks."""
    found = []
    for path in folder.path.glob("saves.rank*.jsonl"):
        rank = path.name.removeprefix("saves.rank").removesuffix(".jsonl")
        if rank.isdecimal() and len(rank) < 6:
            found.append((int(rank), path))
    return sorted(found)


def _with(data: bytes, needle: bytes) -> Iterator[dict[str, Any]]:
    """The lines in `data` that contain `needle`, newest first."""
    end = len(data)
    while (at := data.rfind(needle, 0, end)) >= 0:
        start = data.rfind(b"\n", 0, at) + 1
        stop = data.find(b"\n", at)
        if stop >= 0 and (line := line_of(data[start:stop])) is not None:
            yield line
        end = start


def lines_of(folder: AttemptDir, limit: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of an attempt's journals, with their ranks. Of each journal only the last `limit` bytes are read."""
    for rank, path in journals_of(folder):
        for raw in tail(path, limit).splitlines():
            if (line := line_of(raw)) is not None:
                yield rank, line


def line_of(raw: bytes) -> dict[str, Any] | None:
    """A journal line, or None if `raw` is none."""
    line = object_of(raw)
    return line if line is not None and isinstance(line.get("kind"), str) else None


def saved_of(line: dict[str, Any], attempt: int, rank: int) -> Saved | None:
    """The save of a `save_done` line. None for any other line, and for a garbled one."""
    if line.get("kind") != "save_done" or not isinstance(line.get("path"), str):
        return None
    content = line.get("content")
    numbers = [line.get(key) for key in ("inode", "mtime_ns", "size")]
    known = None
    if isinstance(content, str) and content and all(type(number) is int for number in numbers):
        known = Identity(content, *numbers)  # type: ignore[arg-type]
    within, how = line.get("within"), line.get("how")
    return Saved(
        line["path"],
        _step(line),
        known,
        attempt,
        rank,
        _number(line, "mono"),
        max(0, _step(line, "here")),
        max(0, _step(line, "ranks")),
        within if isinstance(within, str) else None,
        how if isinstance(how, str) else "",
    )


def _step(line: dict[str, Any], key: str = "step") -> int:
    step = line.get(key)
    return step if type(step) is int and step >= 0 else -1


def _number(line: dict[str, Any], key: str) -> float:
    value = line.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def place_of(saved: Saved) -> str | None:
    """The current place of the file of `saved`: its path, a new name beside it, or in its renamed folder. None if it is
    not there, or another file has its place."""
    known = saved.identity
    if known is None:
        return saved.path if os.path.lexists(saved.path) else None
    if _has(saved.path, known):
        return saved.path
    folder, name = os.path.split(saved.path)
    for candidate in (*_entries(folder), *(os.path.join(other, name) for other in _entries(os.path.dirname(folder)))):
        if _has(candidate, known):
            return candidate
    return None


def whole_place(saved: Saved) -> str | None:
    """The current place of `saved`, if its content there is the saved one. None if not."""
    path = place_of(saved)
    if path is None or saved.identity is None:
        return path
    here = identity_of(path)
    return path if here is not None and here.content == saved.identity.content else None


def _has(path: str, known: Identity) -> bool:
    """Whether `path` is the very file, unchanged."""
    try:
        found = os.stat(path, follow_symlinks=False)
        sign = _sign(path, follow_symlinks=False) if stat.S_ISDIR(found.st_mode) else found
    except (OSError, ValueError):
        return False
    return sign is not None and (sign.st_ino, sign.st_mtime_ns) == (known.inode, known.mtime_ns)


def _entries(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = [entry.path for _, entry in zip(range(_MOST_ENTRIES), entries, strict=False)]
            return [path for path in found if not os.path.basename(path).startswith((TORN, BESIDE))]
    except (OSError, ValueError):
        return []
