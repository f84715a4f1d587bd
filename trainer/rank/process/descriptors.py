"""Open files of a process that forks: those of what it has imported are its forks' too, its own are not."""

from __future__ import annotations

import contextlib
import os
import stat

_STANDARD = 3
"""stdin, stdout and stderr are dealt with by name."""


def opened() -> set[int]:
    """All that are open here, but for the standard ones."""
    folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = {int(name) for name in os.listdir(folder)}  # noqa: PTH208 (of a descriptor that we know, and leave out)
        return {fd for fd in found if fd >= _STANDARD and fd != folder}
    finally:
        os.close(folder)


def close_all_but(kept: set[int], pipes: bool) -> None:
    """Of what `opened` says, only `kept` is open any more, and pipes, where `pipes` are to stay. Whatever objects stood
    for the others must never be used, nor collected: they would close what has got their numbers since."""
    for fd in opened() - kept:
        with contextlib.suppress(OSError):
            if not (pipes and stat.S_ISFIFO(os.fstat(fd).st_mode)):
                os.close(fd)
