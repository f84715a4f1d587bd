"""The priority of a process at the processor: lowered, and given back.

Niceness is a thread's own, and inherited by what it starts. To have a lower one again takes a right (setpriority(2):
CAP_SYS_NICE, or RLIMIT_NICE). Where the kernel weighs sessions it weighs these first, by a niceness of their own
(sched(7), "The autogroup feature"), which may be written once in 0.1 s on the whole machine, or with CAP_SYS_ADMIN.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from .proc import threads

LOWEST = 19


def lower(nice: int = LOWEST) -> None:
    """This thread, and what it starts from now on, has the niceness `nice`, and so has its session if no other process
    is in it."""
    os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            _session(os.getpid()).write_text(str(nice))


def lower_for_now() -> bool:
    """As lower(), if this process may have its priority back at any time (see raise_again). Else nothing has changed,
    and it returns False."""
    may: list[bool] = []
    tried = threading.Thread(target=lambda: may.append(_may_return()))
    tried.start()
    tried.join()
    if may == [True]:
        lower()
    return may == [True]


def _may_return() -> bool:
    """Called in a thread of its own, whose niceness is lost if it may not."""
    nice, session = os.getpriority(os.PRIO_PROCESS, 0), _session(os.getpid())
    try:
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        if os.getsid(0) == os.getpid() and (weight := _weight(os.getpid())) is not None:
            for _ in range(2):
                session.write_text(str(weight))
    except OSError:
        return False
    return nice < LOWEST


def raise_again(pid: int, nice: int) -> bool:
    """The threads of the process that have the lowest priority have the niceness `nice`, as far as we may give it, and
    its session that of a new one. Whether anything has changed; then what they have started since may be low."""
    changed = False
    with contextlib.suppress(OSError):
        if _weight(pid) == LOWEST and os.getsid(pid) == pid:
            _session(pid).write_text("0")
            changed = True
    for thread in map(int, threads(pid) if nice < LOWEST else ()):
        with contextlib.suppress(OSError):
            if os.getpriority(os.PRIO_PROCESS, thread) == LOWEST:
                os.setpriority(os.PRIO_PROCESS, thread, nice)
                changed = True
    return changed


def _session(pid: int) -> Path:
    return Path(f"/proc/{pid}/autogroup")


def _weight(pid: int) -> int | None:
    """The niceness of that process' session; None if the kernel does not weigh sessions."""
    try:
        return int(_session(pid).read_text().split()[-1])
    except (OSError, ValueError, IndexError):
        return None
