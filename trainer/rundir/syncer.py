"""Makes the program's own saves durable: `start.py rundir.syncer JOURNAL`. Each line of its stdin is a save, as JSON.

It has the lowest priority (nice, and idle I/O), so that no rank waits for it. Each synced save becomes a line of
JOURNAL, durable.jsonl of the attempt: {"rank", "n", "path", "mono"}. When stdin has ended and all is synced, it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
import time
from pathlib import Path

import msgspec

from .files.codec import decode, encode
from .files.durable import DISK, append_line
from .files.untrusted_files import open_file

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IDLE = 3 << 13
_MOST_FILES = 10_000
_PIECE = 16 << 20
_WRITE_AND_WAIT = 7
"""SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER."""
_LIBC = ctypes.CDLL(None)


class Saved(msgspec.Struct):
    """One finished save."""

    rank: int
    n: int
    path: str
    journal: str


def sync(path: Path) -> None:
    """The file `path`, or the folder of files, is on the disk, with its name. OSError as the system says."""
    if path.is_dir():
        with os.scandir(path) as entries:
            files = [Path(entry.path) for _, entry in zip(range(_MOST_FILES), entries, strict=False) if entry.is_file()]
        for file in files:
            _sync_file(file)
        DISK.sync_dir(path)
    else:
        _sync_file(path)
    DISK.sync_dir(path.parent)


def _sync_file(path: Path) -> None:
    fd = open_file(path)
    try:
        # In pieces: a process that waits for a disk cannot be killed.
        for offset in range(0, os.fstat(fd).st_size, _PIECE):
            if _LIBC.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(_PIECE), _WRITE_AND_WAIT) != 0:
                break
        DISK.fsync(fd, path)
    finally:
        os.close(fd)


def _stand_back() -> None:
    """This process gets the lowest priority, at the processor and at the disk."""
    with contextlib.suppress(OSError):
        os.nice(19)
    if (number := _IOPRIO_SET.get(platform.machine())) is not None:
        with contextlib.suppress(OSError, AttributeError):
            _LIBC.syscall(number, 1, 0, _IDLE)


def _serve(line: bytes) -> None:
    saved = decode(line, Saved)
    sync(Path(saved.path))
    fd = open_file(Path(saved.journal), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        told = {"kind": "durable", "mono": time.monotonic(), "rank": saved.rank, "n": saved.n, "path": saved.path}
        append_line(fd, encode(told))
    finally:
        os.close(fd)


def main(arguments: list[str]) -> None:
    """Runs until stdin ends. A save that cannot be synced, because it is gone or replaced, is skipped."""
    _stand_back()
    for line in sys.stdin.buffer:
        with contextlib.suppress(OSError, ValueError):
            _serve(line)
