"""Every process of an attempt, whoever its parent is now: found, signalled by pidfd, reaped, and verified gone.

torchrun gives each rank a session of its own, so killing its group misses them, and when it is killed they live on. Two
facts hold them: the supervisor is a subreaper, so orphans become its children; and a mark in the environment names the
run, so that even the orphans of a killed supervisor are found.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import struct
import time
from collections.abc import Iterable

import psutil

from trainer.rundir.environment import MARK
from trainer.rundir.machine.proc import stat

_PR_SET_CHILD_SUBREAPER = 36
# ioctl PIDFD_GET_INFO (Linux 6.13; the exit status since 6.15), and the bit that asks for the status.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_TICK = 0.01
_CARETAKERS = ("multiprocessing.resource_tracker import main", "torch_shm_manager")
_CARE = 4.0
"""Seconds that a caretaker has, once those it takes care of are killed. torch_shm_manager waits 2 s for another client
before it removes what is left and goes (SHUTDOWN_TIMEOUT in libshm's manager.cpp, read in torch 2.13)."""
_ZOMBIE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


def become_subreaper() -> bool:
    """Orphans among our descendants become our children (prctl(2)); False where the system refuses."""
    refused: int = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return refused == 0


def decode(status: int) -> int:
    """A wait status as an exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(status)


class Process:
    """One process, held by pidfd, so that a reused pid is never meant."""

    def __init__(self, pid: int) -> None:
        """ProcessLookupError if it is gone."""
        self.pid = pid
        self.fd = os.pidfd_open(pid)

    def close(self) -> None:
        os.close(self.fd)

    def send(self, number: int) -> bool:
        """False if it was gone."""
        try:
            signal.pidfd_send_signal(self.fd, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def exit_status(self, reaped: dict[int, int]) -> int | None:
        """How it ended, once its pidfd is readable; None where nobody can tell."""
        if self.pid in reaped:
            return decode(reaped[self.pid])
        # Until its parent has reaped it, it is in /proc as a zombie, status and all; after that the kernel keeps it with
        # the pidfd. Its parent may reap it between the two looks, not the other way round.
        status = _zombie_status(self.pid)
        if status is None:
            status = _pidfd_status(self.fd)
        return None if status is None else decode(status)


def _zombie_status(pid: int) -> int | None:
    found = stat(pid)
    return found.wait_status if found is not None and found.state == "Z" else None


def _pidfd_status(fd: int) -> int | None:
    buffer = bytearray(struct.pack("QQ", _PIDFD_INFO_EXIT, 0) + bytes(48))
    try:
        fcntl.ioctl(fd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    mask: int = struct.unpack_from("Q", buffer)[0]
    status: int = struct.unpack_from("i", buffer, 60)[0]
    return status if mask & _PIDFD_INFO_EXIT else None


def reap(reaped: dict[int, int]) -> None:
    """Every child of ours that has ended is reaped, its wait status in `reaped` by pid."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        reaped[pid] = status


def _living(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.status() not in _ZOMBIE:
                found.append(process)
    return found


def carries(pid: int, mark: str) -> bool:
    """Whether the environment of that process carries `mark` (of a run, or of one attempt of it)."""
    try:
        value = psutil.Process(pid).environ().get(MARK, "")
    except psutil.Error:
        return False
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise  # not "it does not": we cannot see
        return False
    return value == mark or value.startswith(mark + ".")


def marked(mark: str) -> list[psutil.Process]:
    """Living processes of this machine whose environment carries `mark` (of a run, or of one attempt of it)."""
    me = os.getpid()
    found = []
    for process in psutil.process_iter():
        if process.pid != me and carries(process.pid, mark):
            found.append(process)
    return _living(found)


def members(mark: str, spared: set[int], own: int | None = None, roots: Iterable[int] = ()) -> list[psutil.Process]:
    """Living processes of the run: our descendants and those of `roots`, and once there are none, whoever carries the mark.

    Without those of `spared` (the fork server, the standby's launcher) and what descends from them, except through
    `own`, the launcher of the attempt, which the fork server may have forked. `roots` are living processes of an
    attempt that we adopted.
    """
    # The descendants are quickly listed; the whole of /proc is read only to confirm that nothing is left.
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
    """Whether the nearest of `own` and `spared`, from `pid` upwards, is one of `spared`. `parents` is what is known so far:
    on the path of every recovery, each is looked up once."""
    while pid > 0 and pid != own:
        if pid in spared:
            return True
        if pid not in parents:
            found = stat(pid)
            parents[pid] = found.parent if found is not None else 0
        pid = parents[pid]
    return False


def send_all(processes: list[psutil.Process], number: int) -> int:
    """`number` went to each of `processes` that still is the one that was found; returns how many."""
    sent = 0
    for known in processes:
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            process = Process(known.pid)
            try:
                # The pidfd is open, so the pid cannot be reused from here on; before, it may have been.
                if known.is_running() and process.send(number):
                    sent += 1
            finally:
                process.close()
    return sent


def kill_all(processes: list[psutil.Process], since: float, now: float) -> int:
    """SIGKILL went to each of `processes`, which have been killed `since` then; returns how many got it.

    The last to get it, after some seconds, are Python's resource tracker and torch's manager of shared memory: they
    outlive the processes they belong to, remove from /dev/shm what those have left there, and go by themselves.
    """
    late = now >= since + _CARE
    return send_all([process for process in processes if late or not _is_caretaker(process)], signal.SIGKILL)


def _is_caretaker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(name in word for word in process.cmdline() for name in _CARETAKERS)
    return False


def end_all(mark: str, spared: set[int], reaped: dict[int, int], time_limit: float) -> tuple[int, ...]:
    """Whatever of the run lives, but for `spared` and what descends from them, is gone; returns the pids of those that could
    not be killed within `time_limit` seconds. Children of ours are reaped into `reaped`."""
    began = now = time.monotonic()
    processes = members(mark, spared)
    while processes and now < began + time_limit:
        kill_all(processes, began, now)
        reap(reaped)
        time.sleep(_TICK)
        processes, now = members(mark, spared), time.monotonic()
    return tuple(process.pid for process in processes)
