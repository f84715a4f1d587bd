"""The program's own saves, made durable: `start.py rundir.syncer JOURNAL`, with a save a line on its stdin, as JSON.

It runs with what the machine has to spare (nice, and idle I/O), so that no rank waits for it. What is synced is written
into JOURNAL, durable.jsonl of the attempt: {"rank", "n", "path", "mono"}. When stdin ends and all is done, it ends.
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
    """One save that was done, and the journal into which it is to be written that it is durable."""

    rank: int
    n: int
    path: str
    journal: str


def sync(path: Path) -> None:
    """What is at `path`, a file or a folder of files, is on the disk, with its name. OSError as the system says."""
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
        # A piece at a time: who waits for a disk cannot be killed.
        for offset in range(0, os.fstat(fd).st_size, _PIECE):
            if _LIBC.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(_PIECE), _WRITE_AND_WAIT) != 0:
                break
        DISK.fsync(fd, path)
    finally:
        os.close(fd)


def _stand_back() -> None:
    """Everybody else goes first, at the processor and at the disk."""
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
    """Until stdin ends; what cannot be synced, being gone or replaced by now, is passed over."""
    _stand_back()
    for line in sys.stdin.buffer:
        with contextlib.suppress(OSError, ValueError):
            _serve(line)
