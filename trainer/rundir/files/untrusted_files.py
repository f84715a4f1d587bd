"""Files of a run directory as their readers take them in: whatever lies under such a name, reading it neither blocks, nor
leads out of the folder, nor takes more memory than it should.

A run directory may come from somebody else. A pipe, a link or a device in a file's place is an OSError, as is a file that
is larger than its kind can be. What its bytes say is for codec.decode().
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LIMIT = 64 << 20
"""Bytes of the largest file that is taken in whole."""


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the regular file `path`; OSError if it is anything else, a link to a file too."""
    # O_NONBLOCK: the open of a pipe would wait for its other end.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return fd


def read_file(path: Path, limit: int = LIMIT) -> bytes:
    """What the file holds; OSError if it is no regular file, or larger than `limit` bytes."""
    with os.fdopen(open_file(path), "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(path))
        return file.read(limit)


def tail(path: Path, limit: int) -> bytes:
    """The end of the file, at most `limit` bytes, its first line perhaps cut; nothing of what cannot be read."""
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
