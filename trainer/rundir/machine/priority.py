"""The priority of a process at the processor: lowered, and given back.

Niceness is a thread's own, and inherited by what it starts. To have a lower one again takes a right (setpriority(2):
CAP_SYS_NICE, or RLIMIT_NICE). Where the kernel weighs sessions it weighs these first, by a niceness of their own
(sched(7), "The autogroup feature"), which may be written once in 0.1 s on the whole machine, or with CAP_SYS_ADMIN.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from .proc import threads

LOWEST = 19


def lower(by: int) -> None:
    """This thread, and what it starts from now on, is nicer by so much, and so is its session if no other process is in
    it."""
    os.nice(by)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            _session(os.getpid()).write_text(str(by))


def lower_for_now() -> bool:
    """This thread, and its session if that is its own, have the lowest priority as far as they may have theirs back at
    any time (see raise_again). Returns whether the thread has."""
    may: list[Callable[[], object]] = []
    try:
        tried = threading.Thread(target=lambda: may.extend(_may_return()), name="priority")
        tried.start()
        tried.join()
    except RuntimeError:  # there may be no more threads
        return False
    for each in may:
        with contextlib.suppress(OSError):
            each()
    return os.getpriority(os.PRIO_PROCESS, 0) == LOWEST


def _may_return() -> Iterator[Callable[[], object]]:
    """What lowers this process and can be undone. Called in a thread of its own, whose niceness is lost if not."""
    nice, session, weight = os.getpriority(os.PRIO_PROCESS, 0), _session(os.getpid()), _weight(os.getpid())
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        yield lambda: os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
    with contextlib.suppress(OSError):
        if os.getsid(0) == os.getpid() and weight == 0:
            for _ in range(2):
                session.write_text("0")
            yield lambda: session.write_text(str(LOWEST))


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
