"""What the ranks agree on about the memory tier: which steps have a snapshot, which one becomes a checkpoint, and its end.

every rank    wish() -> the collective that the loop has anyway -> step(): all do the same at the same step
rank 0        a save is due, no flush under way  ->  that step's snapshot is taken pinned, by all ranks
              at the next step all have committed it  ->  note `flush_due`: the supervisor starts the flush
              the pins are gone  ->  the flush is over, the next one may come
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ...rank.progress import Phase, progress
from ..group import Ranks
from ..interval import Interval, Pace, flush_cost
from . import snapshots
from .board import Board
from .memory import Memory


class Wish(NamedTuple):
    """What a rank wishes at a step, or, joined over all ranks by "any", what they agree on."""

    stop: bool = False
    save: bool = False
    snapshot: bool = False
    lost: bool = False
    """This rank can take no more snapshots."""
    spiked: bool = False
    """The losses that rank 0 has seen end in a spike."""
    broken: bool = False
    """This rank's loss is not finite."""


class Tier:
    """The memory tier of a run, on one rank. `every` is a number of steps; None: as `pace` has it."""

    def __init__(
        self, memory: Memory, ranks: Ranks, every: int | None, pace: Pace, interval: Interval, keep: int
    ) -> None:
        self._memory, self._ranks, self._every, self._pace = memory, ranks, every, pace
        self._interval, self._keep = interval, keep
        self._since = 0
        self._boards: dict[int, Board] = {}
        self._pinned: int | None = None
        self._pinned_at = 0.0
        self._said = False
        self._owed = False
        self._cramped = False

    def wish(self, due: bool) -> tuple[bool, bool, bool]:
        """(save, snapshot, lost) as this rank alone sees it; `due` says whether a save is, by the clock."""
        lost = self._memory.problem is not None
        if self._ranks.rank != 0:
            return False, False, lost
        snapshot = self._every is None and self._since + 1 >= self._pace.every
        return (due or self._owed) and self._is_free(), snapshot, lost

    def step(self, done: int, save: bool, due: bool, snapshot: bool, extra: Callable[[], Any]) -> None:
        """`done` steps are finished; the flags are the same on all ranks: rank 0 wishes to save, a save is due by the
        number of steps, rank 0 wishes a snapshot."""
        self._pace.stepped(time.monotonic())
        self._announce()
        self._learn()
        if due and not save:
            save = self._ranks.lead(self._is_free)
            self._owed = not save
        if self._every is not None:
            snapshot = done % self._every == 0
        self._since += 1
        if save:
            with progress().during(Phase.SAVE):
                self._take(done, extra(), pin=True)
            self._pinned, self._pinned_at, self._said, self._owed = done, time.monotonic(), False, False
            self._interval.since = self._pinned_at
        elif snapshot:
            self._take(done, extra(), pin=False)

    def keep(self, done: int, extra: Any) -> None:
        """The state after `done` steps is in memory, if there is room: it could not be saved. All ranks call it."""
        if self._since:
            self._take(done, extra, pin=False)
        self._memory.wait()

    def _take(self, done: int, extra: Any, pin: bool) -> None:
        self._memory.take(done, extra, pin)
        self._since = 0
        self._pace.spent(self._memory.cost_s)
        if self._memory.segment.cramped and not self._cramped:
            self._cramped = True
            progress().note("warning", text="no room in shared memory for a third buffer: no snapshots during a flush")

    def _is_free(self) -> bool:
        """Whether no flush is under way. Only a flush, or the supervisor if that died, takes a pin away."""
        if len(self._boards) < self._ranks.world_size:
            self._boards = snapshots.boards(self._memory.segment.folder)
        return not snapshots.any_pinned(self._boards.values())

    def _learn(self) -> None:
        """How long the flush took is known as soon as it is over, and with it when the next one is due."""
        if self._pinned is None or not self._said or not self._is_free():
            return
        flush = flush_cost(time.monotonic() - self._pinned_at, self._memory.spare)
        self._interval.saved(self._pinned_at, self._memory.cost_s + flush)
        self._pinned = None

    def _announce(self) -> None:
        """The supervisor knows of the pinned snapshot, or it is given up because some rank does not have it."""
        if self._pinned is None or self._said or self._ranks.rank != 0:
            return
        self._memory.wait()
        self._said = True
        folder = self._memory.segment.folder
        if snapshots.find(folder, self._pinned) is not None:
            progress().note("flush_due", step=self._pinned, keep=self._keep)
            return
        # A rank had no buffer for it. Its next one will do.
        snapshots.clear_pins(folder)
        self._pinned, self._owed = None, True

    def give_up(self) -> str:
        """There are no snapshots any more; why, the same on every rank. All ranks call it at the same step."""
        problems = [problem for problem in self._ranks.exchange(self._memory.problem) if problem]
        self.close()
        self._ranks.lead(lambda: snapshots.remove(self._memory.segment.folder))
        return str(problems[0]) if problems else "no snapshots: a rank had trouble with them"

    def close(self) -> None:
        """The last snapshot is committed, and none will follow."""
        self._memory.close()
