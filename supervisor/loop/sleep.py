"""The sleep of the loop: until a process ends, a stop is requested, or the time is over."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable


def sleep(seconds: float, wakeup: int, fds: Iterable[int]) -> set[int]:
    """`seconds` have passed, or something has happened. Returns the readable ones of `fds`. A signal makes `wakeup`
    readable; it is emptied."""
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    for fd in fds:
        poll.register(fd, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(seconds * 1000)}
    if wakeup in ready:
        with contextlib.suppress(BlockingIOError):
            os.read(wakeup, 4096)
    return ready - {wakeup}
