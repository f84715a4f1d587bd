"""The one lock: a flock on an open file or folder, ours until the block is left or this process is dead, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def locked(fd: int, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Whether the lock is ours inside: False only if we do not `wait`, and another process has it. With `shared`, others may
    have it as well that share it. `fd` is closed in the end, and the lock is free."""
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
