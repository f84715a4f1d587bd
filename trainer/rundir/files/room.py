"""Room on a disk that a file keeps for lines to come: what is to be said about a full disk has to get onto it."""

from __future__ import annotations

import contextlib
import ctypes
import os

_KEEP_SIZE = 1


def keep(fd: int, count: int) -> int:
    """The next `count` bytes that are appended to `fd` will find room, though its length is as it was; returns up to which
    offset there is some. Where the disk is full or cannot do that (fallocate(2)), as much as there was."""
    end = os.fstat(fd).st_size
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(fd, _KEEP_SIZE, ctypes.c_long(end), ctypes.c_long(count)) == 0:
            return end + count
    return end


def give_back(fd: int) -> None:
    """No more room is kept than the file has bytes."""
    with contextlib.suppress(OSError):
        os.ftruncate(fd, os.fstat(fd).st_size)
