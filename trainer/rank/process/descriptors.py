"""The open files of a process that forks. Its forks keep the files of its imports, but not its own files."""

from __future__ import annotations

import contextlib
import os
import stat

_STANDARD = 3
"""stdin, stdout and stderr are handled by name."""


def opened() -> set[int]:
    """All open descriptors, except the standard ones."""
    folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = {int(name) for name in os.listdir(folder)}
        return {fd for fd in found if fd >= _STANDARD and fd != folder}
    finally:
        os.close(folder)


def close_all_but(kept: set[int], pipes: bool) -> None:
    """Closes all that opened() lists except `kept`, and except pipes if `pipes` is set. The objects of the closed files
    must never be used, nor collected: they would close other files that have got their numbers."""
    for fd in opened() - kept:
        with contextlib.suppress(OSError):
            if not (pipes and stat.S_ISFIFO(os.fstat(fd).st_mode)):
                os.close(fd)
