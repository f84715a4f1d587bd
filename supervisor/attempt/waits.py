"""The wait of a thread, in the words of the core."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from supervisor.core.sample import Wait
from supervisor.process import kernel
from trainer.rundir.machine.proc import content, stat

_ON_A_FILE = ("read", "pread64", "write", "recvfrom", "recvmsg")
_SOCKETS = ("recvfrom", "recvmsg", "poll", "ppoll", "select", "epoll_wait", "epoll_pwait")
_CHILDREN = ("wait4", "waitid")
_FILES = ("openat", "flock", "fsync", "fdatasync")
_OWN = ("cuda", "pt_nccl", "pt_autograd", "pt_elastic")
"""Prefixes of the names of CUDA's and torch's own threads. They poll a device or each other."""


def of(pid: int, thread: int) -> Wait:
    """The present wait of that thread of `pid`."""
    found = stat(f"{pid}/task/{thread}")
    if found is None:
        return Wait.UNKNOWN
    if found.state in "RD":
        return Wait.NONE if found.state == "R" else Wait.DISK
    wait = kernel.waiting(pid, thread)
    if wait is None:
        return Wait.UNKNOWN
    if wait.name in _ON_A_FILE:
        return _of_file(pid, wait.arguments[0])
    if wait.name in _CHILDREN:
        return Wait.CHILD
    if wait.name in _FILES:
        return Wait.FILE
    seconds = kernel.ends_in(pid, wait)
    if wait.name == "futex":
        return Wait.LOCK if seconds is None or seconds > kernel.LONG_WAIT else Wait.TIMED
    if seconds is not None:
        return Wait.TIMED
    return Wait.SOCKET if wait.name in _SOCKETS else Wait.OTHER


def _of_file(pid: int, descriptor: int) -> Wait:
    try:
        name = str(Path(f"/proc/{pid}/fd/{descriptor}").readlink())
    except OSError:
        return Wait.OTHER
    if name.startswith("socket:"):
        return Wait.SOCKET
    return Wait.CHILD if name.startswith("pipe:") else Wait.FILE


def stranger(pid: int, known: Collection[int]) -> bool:
    """Whether `pid` has an unknown thread, not in `known`, that may wake the others. Something from outside may wake
    that thread: a library's thread may talk to a server."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/task") as threads:
        for thread in threads:
            if int(thread.name) not in known and not kernel.is_bound(Path(thread.path)):
                with contextlib.suppress(OSError):
                    if not (Path(thread.path) / "comm").read_text().startswith(_OWN):
                        return True
    return False


def moved(pid: int, thread: int) -> int:
    """Bytes that the thread has read and written so far. 0 if they cannot be read."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = content(f"/proc/{pid}/task/{thread}/io").split()
        return int(lines[1]) + int(lines[3])
    return 0
