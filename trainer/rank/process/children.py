"""Children of this process that were not reaped yet. Until then no other process can get their pids.

The exit status is read without reaping, so others can still read it.
"""

from __future__ import annotations

import os
import signal


def exit_code(pid: int) -> int | None:
    """The child's exit code, or minus the signal; None while it runs. ChildProcessError if it was reaped, or is not our
    child."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def send(pid: int, number: signal.Signals) -> None:
    """Sends the signal to the child, unless it has ended."""
    os.kill(pid, number)


def end(pid: int) -> None:
    """The child is gone, and reaped."""
    send(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
