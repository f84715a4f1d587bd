"""The end of an attempt: who of it is there, who is killed, and when the next attempt may begin.

It may begin when no task of the old one can run its code any more. A process that only frees its memory (a second for
some gigabytes) is not waited for, unless the next attempt may need what it holds: memory where there is little, memory
of a GPU, or a port that the script has chosen.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Mapping

from supervisor.process import family, proctree
from supervisor.process.kernel import has_gpu
from supervisor.process.kill import kill_family
from supervisor.process.memory import available
from supervisor.process.proctree import Process
from trainer.rundir.machine import proc

_WALKS = 10
"""The most walks of one look. A program that forks without end is looked at again anyway."""
_MUCH = 400_000_000
"""Bytes. To free more takes a process longer than we sleep between two glances (0.1 to 0.25 s a GB; of these, a forked
rank shares some 200 MB with the fork server, which cost it nothing)."""
_SETTLE = 0.02
"""Seconds that a kill waits until nothing of the attempt runs. After that the loop looks again, between its other
work."""


class Ending:
    """The processes of one attempt, from the first signal to their end."""

    def __init__(self, mark: str, known: Callable[[], Mapping[int, Process]], foreign: bool) -> None:
        """`known`: the processes that the attempt holds. `foreign`: they are not our descendants, since another
        supervisor has started them. Then an orphan of theirs is found by its mark alone."""
        self._mark, self._known, self.foreign = mark, known, foreign or not proctree.is_subreaper()
        self._killed_since: float | None = None
        self._held = 0
        """The bytes of memory that the processes had when they were killed first."""
        self._gpu: bool | None = None
        """Whether its ranks use a GPU. None: not looked at yet."""
        self.next_has_memory = False
        """Whether the next attempt's group holds the memory of a GPU that it needs."""
        self.leaving: dict[int, int] = {}
        """The processes that run no code any more and were still there at the last look: pid and start time."""

    def members(self, spared: set[int]) -> list[int]:
        """All its processes that are there, with any parent."""
        before: set[int] = set()
        found: dict[int, None] = {}
        for _ in range(_WALKS):
            roots = [process.pid for process in self._known().values() if not _ended(process)]
            found = dict.fromkeys([*roots, *proctree.below(self._mark, spared, roots)])
            # A process that has moved up during the walk may have been missed, so it takes two to agree.
            if before == found.keys() or not found:
                break
            before = set(found)
        there = [pid for pid in found if proc.is_there(pid)]
        if not there and self.foreign:
            return [process.pid for process in proctree.strangers(self._mark, spared)]
        return there

    def steps(self, ranks: Iterable[int]) -> None:
        """The `ranks` step. So they have opened their GPUs, if they use any."""
        if self._gpu is None:
            self._gpu = any(map(has_gpu, ranks))

    def is_slow(self, pid: int) -> bool:
        """Whether the process may be gone much later than it runs no code any more."""
        return bool(self._gpu) or family.resident(pid) > _MUCH

    @property
    def on_gpu(self) -> dict[int, int]:
        """Those of `leaving` that may still hold memory of a GPU."""
        return dict(self.leaving) if self._gpu else {}

    def force(self, spared: set[int], now: float) -> int:
        """None of its processes runs code any more, unless one waits for a disk or a driver. Returns the number of
        processes that got the signal."""
        if self._killed_since is None:
            self._killed_since = now
            members = self.members(spared)
            self.steps(members)
            self._held = sum(map(family.resident, members))
        known = self._known()
        return kill_family(lambda: self.members(spared), known, _SETTLE, self._killed_since)

    def alive(self, spared: set[int]) -> tuple[int, ...]:
        """The processes that the next attempt has to wait for."""
        there = self.members(spared)
        running = [pid for pid in there if proc.is_running(pid)]
        left = {pid: proc.stat(pid) for pid in there if pid not in running}
        self.leaving = {pid: found.started for pid, found in left.items() if found is not None}
        needed = self._gpu and not self.next_has_memory
        if self.leaving and not running and (needed or not self._has_room()):
            return tuple(self.leaving)
        return (*running, *(pid for pid in self.leaving if family.keeps_port(pid)))

    def still_leaving(self) -> list[int]:
        """Those of `leaving` that are not gone yet."""
        stats = {pid: proc.stat(pid) for pid in self.leaving}
        self.leaving = {
            pid: found.started
            for pid, found in stats.items()
            if found is not None and found.lives and found.started == self.leaving[pid]
        }
        return list(self.leaving)

    def _has_room(self) -> bool:
        """Whether the next attempt can have as much memory as this one had, before that is free."""
        return (available() or 0) >= self._held


def _ended(process: Process) -> bool:
    poll = select.poll()
    poll.register(process.fd, select.POLLIN)
    return bool(poll.poll(0))
