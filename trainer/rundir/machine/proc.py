"""What /proc says of a process in its `stat`: the one reader, for the ranks and for the supervisor."""

from __future__ import annotations

import os
from typing import NamedTuple

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")


class Stat(NamedTuple):
    """/proc/PID/stat, as proc(5) describes it."""

    state: str
    """One letter: R S D T Z X and so on."""
    parent: int
    cpu: float
    """Seconds, of all its threads (of a thread: its own)."""
    started: int
    """In the kernel's ticks since boot. With the pid it is like no other process."""
    arguments: tuple[int, int]
    """Where its command line begins and ends in its memory; zeros where that is not ours to know."""
    wait_status: int
    """How it ended; it stands there for a zombie, and only for those who may know."""

    @property
    def lives(self) -> bool:
        return self.state not in "ZX"


def stat(process: int | str) -> Stat | None:
    """Of a process now, by its pid, or of a thread, as `PID/task/TID`; None if there is none, or it cannot be read."""
    try:
        # The name, in parentheses, may hold anything.
        fields = content(f"/proc/{process}/stat").rpartition(b")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) * _TICK
        arguments = int(fields[45]), int(fields[46])
        return Stat(fields[0].decode(), int(fields[1]), cpu, int(fields[19]), arguments, int(fields[49]))
    except (OSError, ValueError, IndexError):
        return None


def lives(pid: int) -> bool:
    """Whether there is a process with that pid; a zombie is none."""
    found = stat(pid)
    return found is not None and found.lives


def content(path: str) -> bytes:
    """Of a small file in /proc; without what a Python file would ask the kernel besides, for this is read all the
    time."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
