"""The one reader of /proc/PID/stat, for the ranks and for the supervisor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")
PF_EXITING = 0x4
"""A flag of a task, in the kernel's sched.h: it is on its way out."""


class Stat(NamedTuple):
    """/proc/PID/stat, as proc(5) describes it."""

    state: str
    """One letter: R S D T Z X and so on."""
    parent: int
    cpu: float
    """CPU seconds of all threads of the process (for a thread: its own)."""
    started: int
    """The start time in the kernel's ticks since boot. pid and start time together name one process only."""
    arguments: tuple[int, int]
    """The addresses in its memory where its command line begins and ends; zeros if we may not know them."""
    wait_status: int
    """How it ended. It has one once none of its tasks runs, and only readers with the right see it."""
    exiting: bool
    """Whether the task (of a process: its main thread) is on its way out. It runs no code of its own any more."""

    @property
    def lives(self) -> bool:
        return self.state not in "ZX"


def stat(process: int | str) -> Stat | None:
    """The stat of a process, by its pid, or of a thread, by `PID/task/TID`. None if it does not exist or cannot be
    read."""
    try:
        return parse(content(f"/proc/{process}/stat"))
    except (OSError, ValueError, IndexError):
        return None


def parse(text: bytes) -> Stat:
    """The content of /proc/PID/stat. ValueError or IndexError if it is none."""
    # The name, in parentheses, may contain any characters.
    fields = text.rpartition(b")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) * _TICK
    arguments, exiting = (int(fields[45]), int(fields[46])), bool(int(fields[6]) & PF_EXITING)
    return Stat(fields[0].decode(), int(fields[1]), cpu, int(fields[19]), arguments, int(fields[49]), exiting)


def environment() -> tuple[int, int]:
    """The addresses where the kernel has put the environment of this process, at its start. Zeros if it does not
    tell."""
    try:
        fields = content("/proc/self/stat").rpartition(b")")[2].split()
        return int(fields[47]), int(fields[48])
    except (OSError, ValueError, IndexError):
        return 0, 0


def variable(pid: int, name: str) -> bytes | None:
    """The value of `name` in the environment that a process was started with. None if it has no such variable, or
    cannot be looked at."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    begin = f"{name}=".encode()
    return next((entry.removeprefix(begin) for entry in entries if entry.startswith(begin)), None)


def threads(pid: int) -> list[str]:
    """The numbers of its threads; none if the process is gone."""
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def is_running(pid: int) -> bool:
    """Whether a task of the process can still run its code. It cannot if it is gone, a zombie, or exiting for good."""
    return any(not task.exiting for task in _tasks(pid))


def is_there(pid: int) -> bool:
    """Whether the process is not gone, and no zombie. (A main thread can be one while others run.)"""
    return any(True for _ in _tasks(pid))


def _tasks(pid: int) -> Iterator[Stat]:
    """The tasks of the process that are no zombies."""
    for thread in threads(pid):
        found = stat(f"{pid}/task/{thread}")
        if found is not None and found.lives:
            yield found


def left_of(told: str) -> str:
    """Those of the processes `PID:START …` that are not gone yet, nor zombies."""

    def is_there(each: str) -> bool:
        pid, _, started = each.partition(":")
        found = stat(pid)
        return found is not None and found.lives and str(found.started) == started

    return " ".join(filter(is_there, told.split()))


def content(path: str) -> bytes:
    """The content of a small file in /proc. It is read all the time, so it does without the extra system calls of a
    Python file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
