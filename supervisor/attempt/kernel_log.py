"""The kernel's log from a moment on: OOM kills, crashes, device errors."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from supervisor.core.evidence import OomKill

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
_EVERY = 1.0
"""Seconds between two reads while nothing has happened. So there is never much to read."""
_MOST = 2000
"""The most records that one read takes."""
_KEPT = 500
_LONGEST = 300
_USAGE = re.compile(r"memory: usage (\d+)kB, limit (\d+)kB")
_INVOKED = "invoked oom-killer"
_KILLED = re.compile(
    r"Killed process (?P<pid>\d+) \((?P<name>.*?)\),? .*?anon-rss:(?P<anon>\d+)kB, file-rss:(?P<file>\d+)kB"
    r"(?:, shmem-rss:(?P<shmem>\d+)kB)?"
)
_OF_INTEREST = re.compile(
    r"oom-kill|out of memory|killed process|memory: usage|segfault|general protection|trap |bus error|NVRM|Xid"
    r"|I/O error|EXT4-fs error|XFS .*error|nfs: server|hung_task|blocked for more than",
    re.IGNORECASE,
)


class KernelLog:
    """Follows /dev/kmsg from the end that it has now. Never raises: `unreadable` says why it tells nothing."""

    def __init__(self, path: Path = Path("/dev/kmsg")) -> None:
        self.unreadable: str | None = None
        self.lines: list[str] = []
        """The lines since then that may matter: the newest of them."""
        self._fresh: list[str] = []
        self._fd: int | None = None
        self._followed_at = 0.0
        self.names_ours = pids_are_ours()
        """Whether its pids are our pids."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            self.unreadable = f"{path}: {error.strerror}"
            self.close()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def read(self) -> None:
        """The new lines are in `lines`."""
        if self._fd is None:
            return
        for _ in range(_MOST):
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:
                # Lines were overwritten before they were read. They may have told of a kill.
                self.unreadable = "it has overwritten itself"
                continue
            except OSError as error:
                self.unreadable = error.strerror
                break
            text = record.partition(b";")[2].partition(b"\n")[0].decode(errors="replace")[:_LONGEST]
            if _OF_INTEREST.search(text) or _INVOKED in text:
                self.lines = [*self.lines, text][-_KEPT:]
                self._fresh.append(text)

    def news(self) -> list[str]:
        """All lines since the last call that may matter, as far as they are read."""
        found, self._fresh = self._fresh, []
        return found

    def follow(self, now: float) -> None:
        """Reads from time to time. So nothing is overwritten, and little is left to read when it matters."""
        if now >= self._followed_at + _EVERY:
            self._followed_at = now
            self.read()

    def wait_for(self, pids: set[int], until: float) -> None:
        """The new lines are in `lines`. If they tell of no kill of `pids`, it waits for one until `until`: the kernel
        sends the signal before it writes the line."""
        self.read()
        tells = self._fd is not None and self.names_ours
        while tells and not pids & {v.pid for v in oom_kills(self.lines)} and time.monotonic() < until:
            time.sleep(0.002)
            self.read()

    def victims(self) -> tuple[OomKill, ...] | None:
        """The OOM kills in `lines`. None if some may be missing, or if the pids are not ours."""
        return tuple(oom_kills(self.lines)) if self.unreadable is None and self.names_ours else None


def oom_kills(lines: list[str]) -> list[OomKill]:
    """The OOM kills in lines of a kernel's log. Other lines are ignored."""
    found, used, limit = [], None, None
    for line in lines:
        if _INVOKED in line:
            used = limit = None
        elif usage := _USAGE.search(line):
            used, limit = int(usage[1]) * 1024, int(usage[2]) * 1024
        elif kill := _KILLED.search(line):
            held = sum(int(kill[part] or 0) for part in ("anon", "file", "shmem")) * 1024
            found.append(OomKill(int(kill["pid"]), kill["name"], held, used, limit))
    return found


def pids_are_ours() -> bool:
    """Whether the kernel's pids are our pids. In a container with its own pids they mean nothing, or another
    process."""
    with contextlib.suppress(OSError):
        return Path("/proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE
    return False
