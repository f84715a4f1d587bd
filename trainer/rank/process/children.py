"""Children of this process that nobody has reaped. Until then their pids are theirs, so that no other process is meant.

How one has ended is read without reaping it: whoever else wants to know can still look.
"""

from __future__ import annotations

import os
import signal


def exit_code(pid: int) -> int | None:
    """Its exit code, or minus the signal; None while it runs. ChildProcessError if it was reaped, or is no child of
    ours."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def send(pid: int, number: signal.Signals) -> None:
    """The child has got the signal, unless it has ended."""
    os.kill(pid, number)


def end(pid: int) -> None:
    """The child is gone, and reaped."""
    send(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
