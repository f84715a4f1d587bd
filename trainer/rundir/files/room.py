"""Room on the disk that a file reserves for later lines: the report of a full disk must fit onto that disk."""

from __future__ import annotations

import contextlib
import ctypes
import os

_KEEP_SIZE = 1


def keep(fd: int, count: int) -> int:
    """There is room for the next `count` bytes that are appended to `fd`; its length is unchanged. Returns the offset
    up to which there is room. If the disk is full or cannot reserve (fallocate(2)), that offset is unchanged."""
    end = os.fstat(fd).st_size
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(fd, _KEEP_SIZE, ctypes.c_long(end), ctypes.c_long(count)) == 0:
            return end + count
    return end


def give_back(fd: int) -> None:
    """The file reserves no more room than its own bytes."""
    with contextlib.suppress(OSError):
        os.ftruncate(fd, os.fstat(fd).st_size)
