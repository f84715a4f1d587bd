"""The one place that waits for the children of this process, and for the orphans of a run. It knows how each has
ended."""

from __future__ import annotations

import fcntl
import os
import struct

from supervisor.process.proctree import Process
from trainer.rundir.machine.proc import is_running, stat

# ioctl PIDFD_GET_INFO (Linux 6.13; the exit status since 6.15), and the bit that asks for the status.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3


class Reaper:
    """There is one in a process. It takes the status of each child, so nobody else can wait for that child."""

    def __init__(self) -> None:
        self._statuses: dict[int, int] = {}

    def reap(self) -> None:
        """No ended child is left as a zombie."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._statuses[pid] = status

    def forget(self, pid: int) -> None:
        """Call it when a child was waited for in another way. The next process with this pid is another one."""
        self._statuses.pop(pid, None)

    def exit_code(self, process: Process) -> int | None:
        """The end of `process`, which has ended or is about to: its exit code, or minus the signal. None if nobody can
        tell."""
        status = self._statuses.get(process.pid)
        # Until its parent reaps it, it is a zombie in /proc, with its status. Then the kernel keeps the status with the
        # pidfd. The parent may reap it between the two looks, so /proc comes first.
        if status is None:
            status = _told_status(process.pid)
        if status is None:
            status = _pidfd_status(process.fd)
        return None if status is None else os.waitstatus_to_exitcode(status)


def _told_status(pid: int) -> int | None:
    found = stat(pid)
    return found.wait_status if found is not None and not is_running(pid) else None


def _pidfd_status(fd: int) -> int | None:
    buffer = bytearray(struct.pack("QQ", _PIDFD_INFO_EXIT, 0) + bytes(48))
    try:
        fcntl.ioctl(fd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    mask: int = struct.unpack_from("Q", buffer)[0]
    status: int = struct.unpack_from("i", buffer, 60)[0]
    return status if mask & _PIDFD_INFO_EXIT else None
