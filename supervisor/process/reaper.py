"""The one place that waits for the children of this process, and for the orphans of a run. It knows how each has
ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

from supervisor.process.proctree import Process
from trainer.rundir.machine.proc import is_running, stat

# ioctl PIDFD_GET_INFO (Linux 6.13; the exit status since 6.15), and the bit that asks for the status.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_KEPT = 4096
"""How many statuses are kept. A look asks for those of processes that have ended since the one before it."""


class Reaper:
    """There is one in a process. It takes the status of each child, so nobody else can wait for that child. A status is
    that of one process: a later one with the same pid has another start time."""

    def __init__(self) -> None:
        self._statuses: dict[tuple[int, int], int] = {}
        """By pid and start time, the oldest first: what a script leaves behind becomes our child, so a long run may
        see each pid many times."""

    def reap(self) -> None:
        """No ended child is left as a zombie."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            # Until it is reaped the pid is its own.
            found = stat(ended.si_pid)
            if found is None and stat(os.getpid()) is None:
                # No descriptor is left to read with. The next look knows whose status it is.
                return
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(ended.si_pid, os.WNOHANG)
                if found is not None:
                    self._keep((ended.si_pid, found.started), status)

    def _keep(self, process: tuple[int, int], status: int) -> None:
        self._statuses[process] = status
        if len(self._statuses) > _KEPT:
            del self._statuses[next(iter(self._statuses))]

    def exit_code(self, process: Process) -> int | None:
        """The end of `process`, which has ended or is about to: its exit code, or minus the signal. None if nobody can
        tell."""
        status = None if process.started is None else self._statuses.get((process.pid, process.started))
        # Until its parent reaps it, it is a zombie in /proc, with its status. Then the kernel keeps the status with the
        # pidfd. The parent may reap it between the two looks, so /proc comes first.
        if status is None:
            status = _told_status(process)
        if status is None:
            status = _pidfd_status(process.fd)
        return None if status is None else os.waitstatus_to_exitcode(status)


def _told_status(process: Process) -> int | None:
    found = stat(process.pid)
    # Once its parent has reaped it, the pid may be another one's.
    same = found is not None and found.started == process.started
    return found.wait_status if found is not None and same and not is_running(process.pid) else None


def _pidfd_status(fd: int) -> int | None:
    buffer = bytearray(struct.pack("QQ", _PIDFD_INFO_EXIT, 0) + bytes(48))
    try:
        fcntl.ioctl(fd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    mask: int = struct.unpack_from("Q", buffer)[0]
    status: int = struct.unpack_from("i", buffer, 60)[0]
    return status if mask & _PIDFD_INFO_EXIT else None
