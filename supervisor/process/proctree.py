"""Finds every process of an attempt, with any parent, and signals it by pidfd. kill.py ends them.

torchrun gives each rank its own session. So a kill of torchrun's process group misses the ranks, and they outlive
torchrun. They are still found: the supervisor is a subreaper, so orphans become its children. Also, a mark in the
environment names the run. So even the orphans of a killed supervisor are found.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator

import psutil

from trainer.rundir.machine.proc import stat
from trainer.rundir.variables import MARK

_PR_SET_CHILD_SUBREAPER = 36
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_TICK = 1.0 / os.sysconf("SC_CLK_TCK")
_ZOMBIE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def become_subreaper() -> bool:
    """Orphans among our descendants become our children (prctl(2)). False if the system refuses."""
    refused: int = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return refused == 0


class Process:
    """One process, held by pidfd. So a reused pid is never hit."""

    def __init__(self, pid: int) -> None:
        """ProcessLookupError if the process is gone."""
        self.pid = pid
        self.fd = os.pidfd_open(pid)

    @classmethod
    def as_of(cls, pid: int, at: float) -> Process:
        """The process that had `pid` at the time `at`, by the machine's clock. ProcessLookupError if it is gone."""
        process = cls(pid)
        if _began_after(pid, at):
            process.close()
            raise ProcessLookupError
        return process

    def close(self) -> None:
        os.close(self.fd)

    def send(self, number: int) -> bool:
        """Sends a signal. False if the process was gone. To end a process, use kill()."""
        assert number != signal.SIGKILL
        try:
            signal.pidfd_send_signal(self.fd, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def _began_after(pid: int, at: float) -> bool:
    """Whether the process with this pid surely began after `at`. Then it got the pid later."""
    found = stat(pid)
    # The kernel counts from boot, and includes sleep. After a sleep of the machine a process looks older, never
    # younger. Nor if we have to wait for a CPU between the two clocks: they are read in this order.
    now = time.monotonic()
    asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - now
    return found is not None and found.started * _TICK - asleep > at + _TICK


def is_alive(process: psutil.Process) -> bool:
    """Whether it is still the found process, and not a zombie."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() not in _ZOMBIE
    return False


def _living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.status() not in _ZOMBIE:
                found.append(process)
    return found


def carries(pid: int, mark: str) -> bool:
    """Whether the environment of that process has `mark` (of a run, or of one of its attempts)."""
    try:
        value = psutil.Process(pid).environ().get(MARK, "")
    except psutil.Error:
        return False
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise  # This does not mean that it has no mark. We just cannot see.
        return False
    return value == mark or value.startswith(mark + ".")


def marked(mark: str) -> list[psutil.Process]:
    """The living processes of this machine with `mark` in their environment (of a run, or of one of its attempts)."""
    me = os.getpid()
    found = []
    for process in psutil.process_iter():
        if process.pid != me and carries(process.pid, mark):
            found.append(process)
    return _living(found)


def members(mark: str, spared: set[int], own: int | None = None, roots: Iterable[int] = ()) -> list[psutil.Process]:
    """The living processes of the run: our descendants, and those of `roots`. If there are none, all processes with the
    mark.

    `spared` (the fork server, the standby's launcher) and their descendants are left out. The fork server may have
    forked `own`, the launcher of the attempt; `own` and its descendants are included. `roots` are living processes of
    an adopted attempt.
    """
    # The list of descendants is quick. All of /proc is read only to confirm that nothing is left.
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    for root in roots:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(root)
            found |= {process.pid: process} | {child.pid: child for child in process.children(recursive=True)}
    return _without(_living(found.values()), spared, own) or _without(marked(mark), spared, own)


def _without(processes: list[psutil.Process], spared: set[int], own: int | None) -> list[psutil.Process]:
    parents: dict[int, int] = {}
    return [process for process in processes if not _descends(process.pid, spared, own, parents)]


def _descends(pid: int, spared: set[int], own: int | None, parents: dict[int, int]) -> bool:
    """Whether, on the way up from `pid`, a process of `spared` comes before `own`. `parents` caches known parents, so
    each is looked up once: every recovery waits for this."""
    while pid > 0 and pid != own:
        if pid in spared:
            return True
        if pid not in parents:
            found = stat(pid)
            parents[pid] = found.parent if found is not None else 0
        pid = parents[pid]
    return False


@contextlib.contextmanager
def held(found: psutil.Process) -> Iterator[Process | None]:
    """The process that was `found`. None if it is gone."""
    try:
        process = Process(found.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # The pidfd is open, so from here on the pid cannot be reused. It may have been reused before.
        yield process if found.is_running() else None
    finally:
        process.close()


def send_all(processes: list[psutil.Process], number: int) -> int:
    """Sends `number` to each of `processes` that is still the found process. Returns the number of receivers."""
    sent = 0
    for found in processes:
        with held(found) as process:
            sent += process is not None and process.send(number)
    return sent
