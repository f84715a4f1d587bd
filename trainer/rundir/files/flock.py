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
        kind, ours = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait
        if wait:
            fcntl.flock(fd, kind)
        else:
            with contextlib.suppress(OSError):
                ours = is_ours(fd, kind)
        yield ours
    finally:
        os.close(fd)


def is_ours(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether this process holds the lock from now on, until `fd` is closed. False if another one holds it. OSError
    where nothing can be locked."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
