"""The one lock: a flock on an open file or folder. It is free when the block ends, or when this process dies in any
way."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def locked(fd: int, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Whether we hold the lock inside the block. False only without `wait`, if another process holds it. With `shared`,
    others that share it may hold it too. After the block `fd` is closed and the lock is free."""
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
            ours = True
        except OSError:
            if wait:
                raise
            ours = False
        yield ours
    finally:
        os.close(fd)


def is_ours(fd: int) -> bool:
    """Whether this process holds the lock from now on, until `fd` is closed. False if another one holds it. OSError
    where nothing can be locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
