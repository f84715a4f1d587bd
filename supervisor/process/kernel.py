"""The kernel's view of a rank, read from /proc. Nothing is sent to the rank, and it cannot notice.

A glance reads two small files for each rank. A closer look at a quiet rank reads all its threads and those of its
children.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from supervisor.process.system_calls import names
from trainer.rundir.machine.proc import content, stat, variable

LONG_WAIT = 600.0
"""A wait with a limit of this many seconds or more counts as a wait without end."""
_NAMES = names()
_ON_A_FILE = ("read", "pread64", "write", "recvfrom", "recvmsg", "flock", "fsync", "fdatasync")
_FUTEX_PRIVATE, _FUTEX_REALTIME = 128, 256
_EPOLLS = ("epoll_wait", "epoll_pwait")
_SLEEPS = ("clock_nanosleep", "pselect6")
_SHORT_SLEEP = 5.0
"""Seconds. A longer sleep is not polling, and has an end."""
_LOOPS = ("gloo_", "pt_gloo", "pt_tcpstore")
"""Prefixes of the names of torch's threads that poll the other ranks every few milliseconds."""
_GLOOS = (64, 10)
"""The arguments of epoll in gloo's own thread: the most events, and milliseconds. For torch 2.6, which does not name
that thread."""
_CARETAKER = b"multiprocessing.resource_tracker"
_GPUS = ("/dev/nvidia", "/dev/kfd")


@dataclass(frozen=True, slots=True)
class Glance:
    """One process: the state of its main thread, the CPU seconds of all its threads, and the seconds for which the main
    thread waited for a CPU, as far as they were seen."""

    state: str = "?"
    cpu: float = 0.0
    starved: float = 0.0
    turns: str = ""
    """A count, as text: how many times the main thread has got a CPU."""
    ran: int = 0
    """Nanoseconds for which it had one."""
    since: float = 0.0
    """When it was first seen to wait as it does now."""


@dataclass(frozen=True, slots=True)
class Close:
    """A close look at a process and all its descendants."""

    cpu: float
    disk: bool
    held: str
    """As RankView.held."""
    polls: bool | None = False
    """As RankView.polls. None if this look came while it was just looking."""
    sleeps: bool = False
    """As RankView.sleeps."""
    until: float = 0.0
    """The time (CLOCK_MONOTONIC) by which the waits of its other threads that have a limit are over. One of them may
    wake the main thread then."""

    def after(self, before: Close | None) -> Close:
        """This look, with what the one before it has seen already."""
        if before is None:
            return self
        polls = bool(before.polls) if self.polls is None else self.polls
        until = before.until if self.held and self.held == before.held else self.until
        return replace(self, polls=polls, until=until)

    def held_by(self, now: float) -> str:
        """`held`, if those threads have had their time and the main one still waits."""
        return self.held if now >= self.until else ""


@dataclass(frozen=True, slots=True)
class Wait:
    """A system call that a thread is in."""

    name: str
    arguments: tuple[int, ...]


def glance(pid: int, before: Glance | None = None) -> Glance:
    """A glance at `pid` now. Empty if it is gone. `before`: the last glance at it."""
    found = stat(pid)
    if found is None:
        return Glance()
    starved, turns, ran, since = 0.0, "", 0, time.monotonic()
    with contextlib.suppress(OSError, ValueError, IndexError):
        told, waited, given = content(f"/proc/{pid}/schedstat").split()
        starved, turns, ran = int(waited) / 1e9, given.decode(), int(told)
    seen = (found.state, found.cpu, turns, ran)
    if before is not None and seen == ("R", before.cpu, before.turns, before.ran) and before.state == "R":
        # The kernel counts a wait when it is over. This one lasts: nothing of the process has run meanwhile.
        starved, since = starved + since - before.since, before.since
    return Glance(found.state, found.cpu, starved, turns, ran, since)


def descendants(pid: int, but: Collection[int] = ()) -> list[int]:
    """The descendants of `pid`, nearest first, without those in `but` and their descendants. It does not scan all
    processes of the machine: on a large machine that would cost more."""
    found = [child for child in children(pid) if child not in but]
    for child in found:
        found += [grandchild for grandchild in children(child) if grandchild not in but]
    return found


def children(pid: int) -> list[int]:
    try:
        return [int(child) for thread in _threads(pid) for child in (thread / "children").read_text().split()]
    except OSError:
        # The kernel has no CONFIG_PROC_CHILDREN, or the process has just ended.
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
    return []


def closely(pid: int, others: Collection[int] = ()) -> Close:
    """A close look at the rank `pid` and its descendants. `others` are ranks too; they and their descendants are left
    out. If no other process can wake `pid`, only `pid` is looked at. Its children (idle DataLoader workers) do not
    matter then."""
    own, wait = glance(pid), waiting(pid)
    threads = [thread for thread in _threads(pid) if thread.name != str(pid)]
    alone = wait is not None and _private(wait) and all(is_bound(thread, alone=True) for thread in threads)
    family = [] if alone else descendants(pid, others)
    threads += [thread for member in family for thread in _threads(member)]
    bound = alone or all(is_bound(thread) for thread in threads)
    states = [stat(f"{thread.parts[-3]}/task/{thread.name}") for thread in threads]
    disk = own.state == "D" or any(found is not None and found.state == "D" for found in states)
    seconds = ends_in(pid, wait) if wait is not None else None
    sleeps = wait is not None and wait.name in _SLEEPS and seconds is not None and _SHORT_SLEEP < seconds <= LONG_WAIT
    held, polls, until = "", None if wait is None else False, 0.0
    if wait is not None and bound and not disk and seconds is not None and not has_gpu(pid) and not traced(pid):
        held = f"{wait.name} {wait.arguments} {own.turns}" if seconds > LONG_WAIT else ""
        polls = wait.name in _SLEEPS and seconds <= _SHORT_SLEEP
        until = time.monotonic() + max(map(_timed, threads), default=0.0) if held else 0.0
    return Close(own.cpu + sum(glance(member).cpu for member in family), disk, held, polls, sleeps, until)


def traced(pid: int) -> bool:
    """Whether a debugger is attached to `pid`. Then a person looks at it."""
    with contextlib.suppress(OSError):
        return b"\nTracerPid:\t0\n" not in content(f"/proc/{pid}/status")
    return False


def _threads(pid: int) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/task") as entries:
        yield from (Path(entry.path) for entry in entries)


def is_bound(thread: Path, alone: bool = False) -> bool:
    """Whether a thread (not the main one) waits for another thread or for the other ranks. Nothing else can wake it
    then, but for the time (see Close.until). With `alone`: its own processes cannot wake it either."""
    wait = _wait(thread / "syscall")
    if wait is not None and wait.name in _EPOLLS and wait.arguments[2:4] == _GLOOS:
        return True
    if wait is not None and wait.name == "futex":
        return not alone or _private(wait)
    try:
        return (thread / "comm").read_text().startswith(_LOOPS)
    except OSError:
        return False


def _timed(thread: Path) -> float:
    """Seconds until the time ends the wait of `thread` for a lock. 0.0 if it does not, or not soon."""
    wait = _wait(thread / "syscall")
    seconds = ends_in(int(thread.parts[-3]), wait) if wait is not None and wait.name == "futex" else None
    return seconds if seconds is not None and 0.0 < seconds <= LONG_WAIT else 0.0


def _private(wait: Wait) -> bool:
    """Whether the wait is for a lock that no other process can hold. threading's locks are so, multiprocessing's are
    not."""
    return wait.name == "futex" and bool(wait.arguments[1] & _FUTEX_PRIVATE)


def waiting(pid: int, thread: int | None = None) -> Wait | None:
    """The system call in which a thread of `pid` (default: the main one) waits. None if the thread runs, or if we may
    not know."""
    return _wait(Path(f"/proc/{pid}/task/{thread or pid}/syscall"))


def _wait(path: Path) -> Wait | None:
    try:
        number, *arguments = path.read_text().split()
        return Wait(_NAMES.get(int(number), f"system call {number}"), tuple(int(a, 16) for a in arguments))
    except (OSError, ValueError):
        return None


def waits_for_ranks(pid: int, ranks: Collection[int]) -> bool:
    """Whether the script `pid`, which has started `ranks`, can only wait for them. Its main thread waits without a
    limit until a process ends or a descriptor is ready. Its other threads wait for a lock. Its other processes are
    caretakers only."""
    wait = waiting(pid)
    if wait is None or not (wait.name in ("wait4", "waitid") or (wait.name == "poll" and _forever(wait))):
        return False
    if not all(is_bound(thread) for thread in _threads(pid) if thread.name != str(pid)):
        return False
    with contextlib.suppress(OSError):
        return all(_CARETAKER in content(f"/proc/{p}/cmdline") for p in descendants(pid, ranks))
    return False


def _forever(wait: Wait) -> bool:
    return wait.arguments[2] & 0xFFFFFFFF == 0xFFFFFFFF


def ends_in(pid: int, wait: Wait) -> float | None:
    """Seconds until the wait ends by itself, if it is for a lock or for the time. None if something else may end it, or
    if the time cannot be read."""
    now = time.monotonic()
    match wait.name:
        case "futex" if not wait.arguments[3]:
            return float("inf")
        case "futex":
            at, begin = wait.arguments[3], time.time() if wait.arguments[1] & _FUTEX_REALTIME else now
        case "clock_nanosleep":
            clock = time.time() if wait.arguments[0] == time.CLOCK_REALTIME else now
            at, begin = wait.arguments[2], clock if wait.arguments[1] & 1 else 0.0
        case "pselect6" if wait.arguments[0] == 0 and wait.arguments[4]:
            at, begin = wait.arguments[4], 0.0
        case _:
            return None
    seconds = _seconds_at(pid, at)
    return seconds - begin if seconds else None


def _seconds_at(pid: int, address: int) -> float:
    """The timespec at `address` in the memory of `pid`, in seconds. 0 if it cannot be read."""
    try:
        seconds, nanoseconds = struct.unpack("qq", _read(pid, address, 16))
    except struct.error:
        return 0.0
    return float(seconds + nanoseconds / 1e9)


def _read(pid: int, address: int, count: int) -> bytes:
    """`count` bytes of the memory of `pid`. Empty if we may not read it."""
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(count)
    except (OSError, ValueError, OverflowError):
        return b""


def catches(pid: int, number: int) -> bool:
    """Whether `pid` has a handler for that signal."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def maps(pid: int, path: Path) -> bool | None:
    """Whether `pid` has that file in its memory. None if we may not know, or if `pid` is about to end and has no memory
    left. The file is found by the end of its name: the folder may have been moved, and on overlayfs its inode may
    differ from stat's."""
    with contextlib.suppress(OSError):
        mapped = Path(f"/proc/{pid}/maps").read_bytes()
        return os.fsencode("/".join(path.parts[-3:])) + b"\n" in mapped if mapped else None
    return None


def rank(pid: int) -> int | None:
    """The rank that `pid` was started as. None if it is not a rank."""
    said = variable(pid, "RANK") or b""
    return int(said) if said.isdigit() else None


def has_open(pid: int, path: Path) -> bool:
    """Whether `pid` has that file open."""
    with contextlib.suppress(OSError):
        wanted = path.stat()
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if os.path.samestat(entry.stat(), wanted):
                        return True
    return False


def has_gpu(pid: int) -> bool:
    """Whether a GPU may work for `pid` while it sleeps."""
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if str(Path(entry.path).readlink()).startswith(_GPUS):
                    return True
    return False


def wait_text(pid: int) -> str:
    """The wait of the main thread of `pid`, for people: `read of /data/fifo`. Empty for locks, and if the thread
    runs."""
    wait = waiting(pid)
    if wait is None or wait.name == "futex":
        return ""
    if wait.name in _ON_A_FILE:
        with contextlib.suppress(OSError):
            return f"{wait.name} of {Path(f'/proc/{pid}/fd/{wait.arguments[0]}').readlink()}"
    if wait.name == "openat" and (path := _read(pid, wait.arguments[1], 256).partition(b"\0")[0]):
        return f"openat of {path.decode(errors='replace')}"
    return wait.name
