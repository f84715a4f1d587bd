"""The proof, afterwards, that nothing of earlier attempts is left. No recovery waits for it: it reads all of /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import psutil

from supervisor.attempt.attempt import Attempt
from supervisor.process.kill import kill
from supervisor.process.proctree import carries, strangers
from trainer.rundir.machine.proc import stat


class Proof:
    """Looks for what an attempt may have left, once the next one trains."""

    def __init__(self, mark: str, stuck_after: float) -> None:
        """A process that frees its memory for longer than `stuck_after` seconds is told."""
        self._mark, self._stuck_after = mark, stuck_after
        self._over: list[tuple[Attempt, float]] = []
        self._began = 0.0
        """When the newest attempt was launched, in the kernel's seconds since boot."""
        self._searched = True

    def over(self, attempt: Attempt, now: float) -> None:
        """The attempt is over, and the next one is launched now."""
        self._over.append((attempt, now))
        self._began, self._searched = time.clock_gettime(time.CLOCK_BOOTTIME), False

    def look(self, newest: Attempt, spared: set[int], now: float) -> Iterator[str]:
        """Ends what is left of earlier attempts, and yields what a person should know of it."""
        if self._over and not self._searched:
            self._searched = True
            found = [each for each in strangers(self._mark, {*spared, *newest.known()}) if self._is_old(each)]
            if found:
                kill(found)
                yield f"pid {_names(each.pid for each in found)} was left of an earlier attempt, and is killed now"
        for attempt, at in list(self._over):
            left = attempt.ending.still_leaving()
            if left and now < at + self._stuck_after:
                continue
            self._over.remove((attempt, at))
            if left:
                late = f"pid {_names(left)} of attempt {attempt.number} is still about to end"
                yield f"{late}, {self._stuck_after:.0f} s after its kill: perhaps it waits for a driver"

    def _is_old(self, process: psutil.Process) -> bool:
        """Whether the process belongs to an attempt that is over. A fork has the mark of its group, which may be that
        of any attempt; then it is old if it began before the newest launch."""
        if any(carries(process.pid, f"{self._mark}.{attempt.number}") for attempt, _ in self._over):
            return True
        found = stat(process.pid)
        early = found is not None and found.started < self._began * os.sysconf("SC_CLK_TCK") - 1
        return early and carries(process.pid, f"{self._mark}.group")


def _names(pids: Iterator[int] | list[int]) -> str:
    return ", ".join(map(str, pids))
