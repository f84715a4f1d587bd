"""What the kernel says of a rank, read from /proc: nothing is sent to it, and it cannot notice.

A glance costs two small files a rank. A closer look at a quiet one reads every thread of it and of its children.
"""

from __future__ import annotations

import contextlib
import os
import platform
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

LONG_WAIT = 600.0
"""A wait that ends by itself only after this many seconds is as good as one without end."""
_TICK = 1.0 / os.sysconf("SC_CLK_TCK")
# System call numbers, by machine: those that wait, and where their time limit is.
_NAMES = {
    "x86_64": {202: "futex", 230: "clock_nanosleep", 35: "nanosleep", 270: "pselect6", 23: "select", 7: "poll"}
    | {271: "ppoll", 232: "epoll_wait", 281: "epoll_pwait", 0: "read", 17: "pread64", 1: "write", 45: "recvfrom"}
    | {47: "recvmsg", 257: "openat", 73: "flock", 74: "fsync", 75: "fdatasync", 61: "wait4", 247: "waitid"},
    "aarch64": {98: "futex", 115: "clock_nanosleep", 101: "nanosleep", 72: "pselect6", 73: "ppoll", 22: "epoll_pwait"}
    | {63: "read", 67: "pread64", 64: "write", 207: "recvfrom", 212: "recvmsg", 56: "openat", 32: "flock"}
    | {82: "fsync", 83: "fdatasync", 260: "wait4", 95: "waitid"},
}.get(platform.machine(), {})
_ON_A_FILE = ("read", "pread64", "write", "recvfrom", "recvmsg", "flock", "fsync", "fdatasync")
_FUTEX_REALTIME = 256
_LOOPS = ("gloo_", "pt_gloo", "pt_tcpstore")
"""Threads of torch's own, by the beginning of their name: what they poll is the other ranks, every few milliseconds."""
_GPUS = ("/dev/nvidia", "/dev/kfd")


@dataclass(frozen=True, slots=True)
class Glance:
    """Of one process: its main thread's state, CPU seconds of all threads, seconds that the main one waited for a CPU."""

    state: str = "?"
    cpu: float = 0.0
    starved: float = 0.0
    turns: str = ""
    """How often the main thread has been given a CPU."""


@dataclass(frozen=True, slots=True)
class Close:
    """Of a process and all its descendants."""

    cpu: float
    disk: bool
    held: str
    """As RankView.held."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A system call that a thread is in."""

    name: str
    arguments: tuple[int, ...]


def glance(pid: int) -> Glance:
    """Of `pid` now; an empty one if it is gone."""
    try:
        state, cpu = _stat(f"/proc/{pid}/stat")
    except (OSError, ValueError, IndexError):
        return Glance()
    starved, turns = 0.0, ""
    with contextlib.suppress(OSError, ValueError, IndexError):
        _, waited, given = _content(f"/proc/{pid}/schedstat").split()
        starved, turns = int(waited) / 1e9, given.decode()
    return Glance(state, cpu, starved, turns)


def _stat(path: str) -> tuple[str, float]:
    fields = _content(path).rpartition(b")")[2].split()
    return fields[0].decode(), (int(fields[11]) + int(fields[12])) * _TICK


def _content(path: str) -> bytes:
    """Of a small file in /proc; without what a Python file would ask the kernel besides, for this is read all the time."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def descendants(pid: int) -> list[int]:
    """Of `pid`, nearest first. Not by a scan of the machine, which costs by the number of its processes."""
    found = _children(pid)
    for child in found:
        found += _children(child)
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for thread in _threads(pid) for child in (thread / "children").read_text().split()]
    except OSError:
        # A kernel without CONFIG_PROC_CHILDREN, or a process that has just gone.
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
    return []


def closely(pid: int) -> Close:
    """Of the rank `pid` with its descendants."""
    tree = [pid, *descendants(pid)]
    seen = [glance(member) for member in tree]
    disk, bound = False, True
    for member in tree:
        for thread in _threads(member):
            with contextlib.suppress(OSError, ValueError, IndexError):
                disk = disk or _stat(f"{thread}/stat")[0] == "D"
            if thread.name != str(pid):
                bound = bound and _bound(thread)
    wait = waiting(pid)
    held = ""
    if wait is not None and bound and not disk and _endless(pid, wait) and not _has_gpu(pid):
        held = f"{wait.name} {wait.arguments} {seen[0].turns}"
    return Close(sum(each.cpu for each in seen), disk, held)


def _threads(pid: int) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (Path(entry.path) for entry in os.scandir(f"/proc/{pid}/task"))


def _bound(thread: Path) -> bool:
    """Whether a thread other than the main one waits for a thread, or for the other ranks: nobody else can wake it."""
    wait = _wait(thread / "syscall")
    if wait is not None and wait.name == "futex":
        return True
    try:
        return (thread / "comm").read_text().startswith(_LOOPS)
    except OSError:
        return False


def waiting(pid: int) -> Wait | None:
    """What the main thread of `pid` waits in; None if it runs, or where we may not know."""
    return _wait(Path(f"/proc/{pid}/syscall"))


def _wait(path: Path) -> Wait | None:
    try:
        number, *arguments = path.read_text().split()
        return Wait(_NAMES.get(int(number), f"system call {number}"), tuple(int(a, 16) for a in arguments))
    except (OSError, ValueError):
        return None


def _endless(pid: int, wait: Wait) -> bool:
    """Whether the wait is for a lock or the time, and does not end by itself within LONG_WAIT."""
    now, real = time.monotonic(), time.time()
    match wait.name:
        case "futex":
            clock = real if wait.arguments[1] & _FUTEX_REALTIME else now
            return not wait.arguments[3] or _seconds_at(pid, wait.arguments[3]) - clock > LONG_WAIT
        case "clock_nanosleep":
            absolute = wait.arguments[1] & 1
            begin = (real if wait.arguments[0] == time.CLOCK_REALTIME else now) if absolute else 0.0
            return _seconds_at(pid, wait.arguments[2]) - begin > LONG_WAIT
        case "pselect6" if wait.arguments[0] == 0 and wait.arguments[4]:
            return _seconds_at(pid, wait.arguments[4]) > LONG_WAIT
    return False


def _seconds_at(pid: int, address: int) -> float:
    """The timespec at `address` in the memory of `pid`; 0 where that cannot be read."""
    try:
        seconds, nanoseconds = struct.unpack("qq", _read(pid, address, 16))
    except struct.error:
        return 0.0
    return float(seconds + nanoseconds / 1e9)


def _read(pid: int, address: int, count: int) -> bytes:
    """So many bytes of the memory of `pid`; none where we may not."""
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(count)
    except (OSError, ValueError, OverflowError):
        return b""


def _has_gpu(pid: int) -> bool:
    """Whether a GPU may be at work for it while it sleeps."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if str(Path(entry.path).readlink()).startswith(_GPUS):
                    return True
    return False


def wait_text(pid: int) -> str:
    """What the main thread of `pid` waits for, for people: `read of /data/fifo`; empty for locks, and if it runs."""
    wait = waiting(pid)
    if wait is None or wait.name == "futex":
        return ""
    if wait.name in _ON_A_FILE:
        with contextlib.suppress(OSError):
            return f"{wait.name} of {Path(f'/proc/{pid}/fd/{wait.arguments[0]}').readlink()}"
    if wait.name == "openat" and (path := _read(pid, wait.arguments[1], 256).partition(b"\0")[0]):
        return f"openat of {path.decode(errors='replace')}"
    return wait.name
