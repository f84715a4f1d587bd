"""Write-back of a part of a file, asked for before the file is synced: the disk works while the rest is still made."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

_WRITE = 2
"""SYNC_FILE_RANGE_WRITE of sync_file_range(2). With the flags that wait, an error would be told here and not by the
fsync that follows."""


@functools.cache
def _call() -> Callable[[int, int, int, int], int] | None:
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):  # of a C library without it
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


def begin(fd: int, start: int, count: int) -> None:
    """The disk begins to write `count` bytes of `fd` from `start` on. It does not wait for them, and proves nothing:
    they are durable after the fsync. Where the system cannot do that, nothing happens."""
    if (call := _call()) is not None:
        call(fd, start, count, _WRITE)
