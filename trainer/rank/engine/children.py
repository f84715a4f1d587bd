"""How a child of this process has ended, without reaping it: whoever else wants to know can still look."""

from __future__ import annotations

import os


def exit_code(pid: int) -> int | None:
    """Its exit code, or minus the signal; None while it runs. ChildProcessError if it was reaped, or is no child of ours."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
