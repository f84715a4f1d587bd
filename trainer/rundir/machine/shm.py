"""Names in shared memory: one folder for each run. It outlives the workers and is removed with the run.

/dev/shm/supervise-<mark>/      0700
  rank0                         board: what each buffer of rank 0 holds, and which of them a flush is reading
  rank0.a  rank0.b              buffers, a whole snapshot each
  rank0.c                       a third, only while one is pinned
  flushed                       the newest snapshot of which a flush has made a checkpoint
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from ..variables import MARK

ROOT = Path("/dev/shm")
SLOTS = "abc"

_MARK = re.compile(r"\A[A-Za-z0-9_-]{1,100}\Z")
_BOARD = re.compile(r"\Arank([0-9]+)\Z")


def problem(root: Path = ROOT) -> str:
    """Why shared memory cannot be used here, such as "/dev/shm is read-only"; "" if it can be used."""
    try:
        flags = os.statvfs(root).f_flag
    except FileNotFoundError:
        return f"{root} is not there"
    except OSError as error:
        return f"{root} cannot be used ({error.strerror})"
    if flags & os.ST_RDONLY:
        return f"{root} is read-only"
    if not root.is_dir() or not os.access(root, os.W_OK | os.X_OK):
        return f"{root} cannot be written by this user"
    return ""


def is_mark(text: str) -> bool:
    """Whether `text` can be the mark of a run: a path made with it cannot lead to another folder."""
    return _MARK.match(text) is not None


def segment_of(mark: str) -> Path:
    """The folder of the run with that mark. ValueError if the mark could lead to another folder."""
    if not is_mark(mark):
        raise ValueError(f"{mark!r} is not the mark of a run")
    return ROOT / f"supervise-{mark}"


def segment_here(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of the run that this process belongs to. None without a supervisor."""
    mark = environ.get(MARK, "").rpartition(".")[0]
    return segment_of(mark) if is_mark(mark) else None


def whose(environ: Mapping[str, str] = os.environ) -> str:
    """The shared memory of this process: two processes with the same text see the same files there, as far as they are
    of the same run on one node. Machines differ in it, and so do containers."""
    segment = segment_here(environ)
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{kernel}/{ROOT.stat().st_dev}/{segment.name if segment else ''}"
    except OSError:
        return f"{os.uname().nodename}/{segment.name if segment else ''}"


def board_path(segment: Path, rank: int) -> Path:
    return segment / f"rank{rank}"


def buffer_path(segment: Path, rank: int, slot: str) -> Path:
    return segment / f"rank{rank}.{slot}"


def flushed_path(segment: Path) -> Path:
    return segment / "flushed"


def is_private(segment: Path) -> bool:
    """Whether `segment` is a folder that belongs to this user and that nobody else may enter. OSError if it is
    missing."""
    found = segment.lstat()
    # Everybody may make folders in /dev/shm: an existing one may be another user's trap.
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def ranks_in(segment: Path) -> list[int]:
    """The ranks that have a board, in order. None are found in a folder that other users can write."""
    try:
        names = [path.name for path in segment.iterdir()] if is_private(segment) else []
    except OSError:
        return []
    return sorted(int(match[1]) for name in names if (match := _BOARD.match(name)))


def claim(segment: Path) -> None:
    """`segment` is a folder that belongs to this user and that nobody else may enter. PermissionError if it cannot
    be."""
    with contextlib.suppress(FileExistsError):
        segment.mkdir(mode=0o700)
    if not is_private(segment):
        raise PermissionError(f"{segment} is not a private folder of this user")


def remove(segment: Path) -> None:
    """`segment` is removed, except for parts that the system refuses to remove."""
    if segment.is_symlink():
        return
    shutil.rmtree(segment, ignore_errors=True)
