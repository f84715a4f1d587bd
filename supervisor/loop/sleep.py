"""The sleep of the loop: until a process ends, a stop is requested, or the time is over."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterable

from supervisor.process.proctree import Process

GLANCE = 0.025
"""Seconds between two glances at the processes, whose descriptors tell their end only when their memory is free."""


def sleep(seconds: float, wakeup: int, fds: Iterable[int], processes: Iterable[Process] = ()) -> set[int]:
    """`seconds` have passed, or something has happened. Returns the readable ones of `fds`, and the descriptors of
    those `processes` that run no code any more. A signal makes `wakeup` readable; it is emptied."""
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    for fd in fds:
        poll.register(fd, select.POLLIN)
    watched, until = list(processes), time.monotonic() + seconds
    while True:
        left = max(0.0, until - time.monotonic())
        last = not watched or left <= GLANCE
        ready = {fd for fd, _ in poll.poll((left if last else GLANCE) * 1000)}
        ready |= {process.fd for process in watched if process.is_leaving()}
        if ready or last:
            break
    if wakeup in ready:
        with contextlib.suppress(BlockingIOError):
            os.read(wakeup, 4096)
    return ready - {wakeup}
