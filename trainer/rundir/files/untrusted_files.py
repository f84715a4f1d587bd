"""Reads files of a run directory safely: a read never blocks, leads out of the folder, or takes too much memory.

A run directory may come from somebody else. A pipe, a link or a device in the place of a file is an OSError. So is a
file that is larger than its kind can be. codec.decode() checks the bytes.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LIMIT = 64 << 20
"""The largest file that is read as a whole, in bytes."""


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the regular file `path`. OSError if it is anything else; a link to a file is one too."""
    # O_NONBLOCK: the open of a pipe would wait for its other end.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return fd


def read_file(path: Path, limit: int = LIMIT) -> bytes:
    """The content of the file. OSError if it is not a regular file, or larger than `limit` bytes."""
    with os.fdopen(open_file(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(path))
        return file.read(limit)


def tail(path: Path, limit: int) -> bytes:
    """The end of the file, at most `limit` bytes; its first line may be cut. Empty if the file cannot be read."""
    try:
        fd = open_file(path)
    except OSError:
        return b""
    try:
        size = os.fstat(fd).st_size
        return os.pread(fd, min(size, limit), max(0, size - limit))
    except OSError:
        return b""
    finally:
        os.close(fd)
