"""The journal of a program's own saves and loads: `saves.rank0.jsonl` in the attempt's folder, a JSON line each, one
writer a file.

    save_begun     {n, path, step, here, how, …}               about to be written; `n` tells this rank's saves apart
    save_done      {n, path, step, here, how, …, began, size, content, inode, mtime_ns}
    save_failed    {n, path, step, here, how, …, error}
    save_in_place  {n, path}                                   it was begun beside, and now writes over what is there
    save_beside    {n, path}                                   a folder that is written beside as a whole, and exchanged
    beside         {folder}                                    files are written beside those in it: .saving-*/
    load_done      {path, step, attempt_of, rank_of, path_of}  before the first step; `step` is that of the save it
    holds
    load_failed    {path, error}

`…` is, where it holds: `beside` true (it is written beside and renamed: a kill leaves what was there), `ranks` (it is a
folder, a checkpoint of several files, and so many ranks save into it: whole once all of them are done), `within` (it is
a file of that folder), `holds` [key, …] (what a dict that was saved has at its top, or the begin of it).
`durable.jsonl` beside it is written by a helper that syncs what is done: {rank, n, path}.

Every line also has `mono`. `step` is true: counted from the beginning of the run, over all attempts; -1 where that is
not known; `here` are those that this process has made. `path` is absolute, its links resolved. A save that was begun,
and neither done nor failed when its attempt ended, is torn. What lies there may be anybody's: a reader takes what it
understands and passes over the rest.
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
"""Bytes at both ends of a file that tell its content: a zip archive, as torch.save writes it, has there its sums."""
_SEARCHED = 64 << 20
"""Bytes of journals that a search reads, the newest first: some 200,000 saves."""
SIGNS = (".metadata", "trainer_state.json", "random_states_0.pkl")
"""What torch.distributed.checkpoint, Hugging Face's Trainer and accelerate write last into the folder of a
checkpoint."""
TORN = ".torn-"
"""How the name of a folder begins that was set aside, because a save into it never came to its end."""
BESIDE = ".saving-"
"""How the name of a folder begins that holds a file until it is whole."""
_MOST_ENTRIES = 10_000
_MOST_ALIKE = 1000
"""Saves of one rank that are looked at, where all of them look alike."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file is known by again, also under another name, and as a copy."""

    content: str
    """Its size and a digest of its ends."""
    inode: int
    mtime_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A save that was done, as the journal has it."""

    path: str
    step: int
    """The true step, or -1 where that is not known."""
    identity: Identity | None
    attempt: int
    rank: int
    mono: float
    here: int = 0
    """Steps that its process had made: none, and it is no progress of that attempt's."""
    ranks: int = 0
    """Of a folder that several files make a checkpoint: how many ranks write into it, each with a save of its own. 0 of
    a file."""
    within: str | None = None
    """Of a file: the folder of which it is a part."""
    how: str = ""
    """By which function."""


def identity_of(path: str) -> Identity | None:
    """That of a regular file, or of a folder as torch.distributed.checkpoint makes it; None of anything else."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a link is what it leads to)
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
    """Of the file that is written last; its content says little, for it has the same tensors each time."""
    if (found := _sign(path)) is None:
        return None
    size = 0
    with os.scandir(path) as entries:
        for _, entry in zip(range(_MOST_ENTRIES), entries, strict=False):
            size += entry.stat().st_size
    content = f"{size:x}-{_digest(f'{found.st_ino} {found.st_mtime_ns} {found.st_size}'.encode())}"
    return Identity(content, found.st_ino, found.st_mtime_ns, size)


def _sign(path: str, follow_symlinks: bool = True) -> os.stat_result | None:
    """That of the first of SIGNS that is in the folder."""
    for name in SIGNS:
        with contextlib.suppress(OSError):
            return os.stat(os.path.join(path, name), follow_symlinks=follow_symlinks)  # noqa: PTH116, PTH118
    return None


def find(run: RunDir, path: str, here: Identity) -> Saved | None:
    """The save that made what `path` holds now, being `here`: the same file, or a copy, whatever it is called; else one
    that was begun under that path and never said to be done. None if this run did not make it."""
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
    """What the newest line about a path says of a file there that could be read, and is none that the journal
    describes."""
    if line.get("kind") == "save_begun":
        return Saved(str(line["path"]), _step(line), None, attempt, rank, _number(line, "mono"))
    saved = saved_of(line, attempt, rank)
    return saved if saved is not None and saved.identity is None else None


def _journals(run: RunDir) -> Iterator[tuple[int, int, bytes]]:
    """(attempt, rank, content) of the journals, the newest attempt first, up to _SEARCHED bytes."""
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
    """The lines in `data` that hold `needle`, newest first."""
    end = len(data)
    while (at := data.rfind(needle, 0, end)) >= 0:
        start = data.rfind(b"\n", 0, at) + 1
        stop = data.find(b"\n", at)
        if stop >= 0 and (line := line_of(data[start:stop])) is not None:
            yield line
        end = start


def line_of(raw: bytes) -> dict[str, Any] | None:
    """A line of a journal, or None if it is none."""
    line = object_of(raw)
    return line if line is not None and isinstance(line.get("kind"), str) else None


def saved_of(line: dict[str, Any], attempt: int, rank: int) -> Saved | None:
    """The save that a `save_done` line tells of; None for any other, and for one that is garbled."""
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
    """Where the file of `saved` is now: at its path, or renamed beside it or with its folder. None if it is nowhere
    there, or another one lies in its place."""
    known = saved.identity
    if known is None:
        return saved.path if os.path.lexists(saved.path) else None
    if _has(saved.path, known):
        return saved.path
    folder, name = os.path.split(saved.path)
    for candidate in (*_entries(folder), *(os.path.join(other, name) for other in _entries(os.path.dirname(folder)))):  # noqa: PTH118, PTH120
        if _has(candidate, known):
            return candidate
    return None


def _has(path: str, known: Identity) -> bool:
    """Whether `path` is the very file, unchanged."""
    try:
        found = os.stat(path, follow_symlinks=False)  # noqa: PTH116
        sign = _sign(path, follow_symlinks=False) if stat.S_ISDIR(found.st_mode) else found
    except (OSError, ValueError):
        return False
    return sign is not None and (sign.st_ino, sign.st_mtime_ns) == (known.inode, known.mtime_ns)


def _entries(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = [entry.path for _, entry in zip(range(_MOST_ENTRIES), entries, strict=False)]
            return [path for path in found if not os.path.basename(path).startswith((TORN, BESIDE))]  # noqa: PTH119
    except (OSError, ValueError):
        return []
