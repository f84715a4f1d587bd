"""The memory tier, as the ranks agree on it: which steps have a snapshot, which one becomes a checkpoint, when it ends.

every rank    wish() -> the collective that the loop has anyway -> step(): all do the same at the same step
rank 0        a save is due, no flush under way  ->  that step's snapshot is taken pinned, by all ranks
              at the next step all have committed it  ->  note `flush_due`: the supervisor starts the flush
              the pins are gone  ->  the flush is over, the next one may come

A save may be due while a flush runs. Under "auto" the save waits for a later step. By a number of steps it is owed at
this step: the ranks wait for the flush if it is about to end, else they save the step themselves. They never need the
flush, or a supervisor, to go on. There is never more than one pinned snapshot.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from ...rank.progress import progress
from ...rundir.codes import Phase
from ...rundir.machine.shm import SLOTS
from ..group import Ranks
from ..interval import Interval, Pace, flush_cost, passed, time_limit
from . import snapshots
from .board import Board
from .memory import Memory

REMOVALS = 3
"""The memory tier is given up when somebody else has removed the snapshots this often."""


class Wish(NamedTuple):
    """The wish of a rank at a step. The wishes of all ranks, joined by "any", are the agreement."""

    stop: bool = False
    save: bool = False
    snapshot: bool = False
    lost: bool = False
    """This rank can take no more snapshots."""
    spiked: bool = False
    """Rank 0 has seen losses that end in a spike."""
    broken: bool = False
    """This rank's loss is not finite."""
    compare: bool = False
    """Rank 0 wishes to compare the states of all ranks."""
    layout: bool = False
    """This rank has tensors on whose layout the ranks have not agreed."""
    under_way: bool = False
    """The newest snapshot has not arrived yet, on this rank or from it."""
    missing: bool = False
    """This rank lacks something of the newest snapshot."""


class Tier:
    """The memory tier of a run, on one rank. `every` is a number of steps; None: `pace` decides. `save` makes a
    checkpoint of the last step, by all ranks, without a flush. `done` steps are done already."""

    def __init__(
        self,
        memory: Memory,
        ranks: Ranks,
        every: int | None,
        pace: Pace,
        interval: Interval,
        keep: int,
        save: Callable[[], object],
        done: int = 0,
    ) -> None:
        self._memory, self._ranks, self._every, self._pace = memory, ranks, every, pace
        self._interval, self._keep, self._save, self._done = interval, keep, save, done
        self._jump = 1
        """The steps that the newest call of step() has told of: one, in most loops."""
        self._flushes: deque[float] = deque(maxlen=3)
        """Seconds that the last flushes took, each from the note of it on; the newest is the last."""
        self._save_s: float | None = None
        """Seconds that the newest save by the ranks took."""
        self._untold_s = 0.0
        self._promised = False
        """Whether the pinned snapshot is of a step that the user's number of steps promises."""
        self._left_out: int | None = None
        self._since = 0
        self._boards: dict[int, Board] = {}
        self._pinned: int | None = None
        self._pinned_at = self._told_at = 0.0
        self._said = False
        self._owed = False
        self._cramped = False
        self._made = 0
        self._moving = False
        """Whether a snapshot is on the network beside the step that begins now."""
        self._waiting = False
        """Whether a snapshot is due, once the newest one has arrived everywhere."""
        self._shed = False

    def wish(self, due: bool) -> tuple[bool, bool, bool]:
        """(save, snapshot, lost) as this rank alone sees it. `due`: a save is due by the clock."""
        if self._every is not None and (self._since + 1) * self._jump >= self._every:
            # Before the ranks meet: after a step that had no optimizer's step to wait at, another rank may already
            # replace the snapshot that this one still copies, and no step would be whole.
            self._memory.arrive()
        lost = self._memory.over is not None
        if self._ranks.rank != 0:
            return False, False, lost
        snapshot = self._every is None and self._pace.due(self._since + 1)
        if self._memory.by_steps and self._memory.busy:
            snapshot = False  # it would stop training until the last one is over
        return (due or self._owed) and self._is_free(), snapshot, lost

    def safe(self) -> tuple[bool, bool]:
        """(under way, missing) of the newest snapshot, as this rank alone sees it."""
        under_way = self._memory.under_way
        return under_way, self._memory.ring and not under_way and self._memory.newest.missing

    def step(self, done: int, agreed: Wish, due: bool, extra: Callable[[], Any]) -> None:
        """`done` steps are finished. `due`: a save is due by the number of steps."""
        moves, busy = self._memory.moving_s is not None, self._moving
        self._pace.stepped(time.monotonic(), busy if moves and not self._memory.by_steps else None)
        self._moving = agreed.under_way
        snapshot = agreed.snapshot if self._every is None else passed(self._every, self._done, done)
        self._done, self._jump = done, max(1, done - self._done)
        if self._memory.ring:
            self._step_in_ring(done, agreed, due, snapshot, extra)
        else:
            self._step(done, agreed.save, due, snapshot, extra)
        if self._made != self._memory.made:
            self._made = self._memory.made
            self._pace.made()
        for seconds, copied in self._memory.tick():
            self._pace.timed(seconds, copied or (moves and busy))

    def _step_in_ring(self, done: int, agreed: Wish, due: bool, snapshot: bool, extra: Callable[[], Any]) -> None:
        """No node has a whole snapshot, so the ranks save to disk themselves. A snapshot is taken over an older one
        only when all ranks have the newest one, with what they keep of others; else a fault could leave none."""
        if agreed.save or due:
            self._save()
        self._since += 1
        self._waiting |= snapshot
        if not self._waiting or agreed.under_way:
            return
        self._waiting = False
        if agreed.missing:
            self._memory.newest.take_back()
        elif not self._shed:
            self._shed = self._memory.newest.shed()
        self._take(done, extra())

    def _step(self, done: int, save: bool, due: bool, snapshot: bool, extra: Callable[[], Any]) -> None:
        self._announce()
        self._learn()
        if due and not save:
            save = self._is_their_turn()
        self._since += 1
        if save:
            with progress().during(Phase.SAVE):
                self._take(done, extra(), pin=True, owed=due)
            self._pinned, self._said, self._owed = done, False, False
            self._pinned_at = self._told_at = time.monotonic()
            self._promised = due
            self._interval.since = self._pinned_at
        elif snapshot:
            self._take(done, extra(), owed=self._every is not None)

    def keep(self, done: int, extra: Any) -> None:
        """For a state that could not be saved: the state after `done` steps is in memory, if there is room. All ranks
        call it."""
        if self._memory.ring:
            return  # no supervisor would know that it is there
        self._memory.wait()
        for _ in SLOTS:  # on a GPU, one that had to be made leaves a snapshot out
            # All or none: what a rank has of its own goes to a rank that waits for it.
            if any(self._ranks.any(not self._memory.segment.has(done))):
                self._take(done, extra, owed=True)
                self._memory.wait()
        self._memory.settle()
        # When the first rank leaves, the supervisor ends the others. So no rank leaves before all have the snapshot.
        self._ranks.exchange(None)

    def go_back(self, step: int) -> None:
        """No snapshot of a later step than `step` is left, and none will follow. All ranks call it."""
        self._memory.wait()
        self.close()
        self._ranks.exchange(None)
        self._ranks.each_node(lambda: snapshots.drop(self._memory.segment.folder, lambda attempt, at: at > step))

    def forget(self) -> None:
        """The next snapshot is planned anew: what each rank has of its own has changed."""
        self._memory.forget()

    @property
    def stall_s(self) -> float:
        """Seconds for which all snapshots so far have stopped training."""
        return self._memory.stall_s

    @property
    def unplanned(self) -> bool:
        """Whether the ranks must agree on the layout of their state before the next snapshot."""
        return self._memory.unplanned

    def untold(self) -> float:
        """Seconds for which snapshots, and waits for a flush, have stopped training since the last call."""
        seconds, self._untold_s = self._untold_s, 0.0
        return round(seconds, 6)

    def _is_their_turn(self) -> bool:
        """Whether a flush will save the step that is owed now. If not, the ranks have saved it themselves, or tried
        to."""
        began = time.monotonic()
        with progress().during(Phase.SAVE):
            free = self._ranks.lead(self._wait_for_the_flush)
            self._learn()
            waited = time.monotonic()
            self._untold_s += waited - began
            if not free:
                self._save()
                self._save_s = time.monotonic() - waited
        return free

    def _wait_for_the_flush(self) -> bool:
        now = time.monotonic()
        until = now + time_limit(now - self._told_at, self._flushes[-1] if self._flushes else None, self._save_s)
        while not (free := self._is_free()) and time.monotonic() < until:
            time.sleep(0.002)
        return free

    def _take(self, done: int, extra: Any, pin: bool = False, owed: bool = False) -> None:
        before = self._memory.stall_s
        self._memory.take(done, extra, pin, owed)
        self._untold_s += self._memory.stall_s - before
        self._since, self._moving = 0, True
        if self._memory.unready != done:
            self._pace.spent(self._memory.cost_s, self._memory.moving_s)
        left_out = self._memory.left_out
        if self._every is not None and left_out != self._left_out and left_out != self._memory.unready:
            self._left_out = left_out
            text = f"there is no snapshot of step {self._left_out}: its buffers were not free in time"
            progress().note("warning", text=text)
        if self._memory.segment.cramped and not self._cramped:
            self._cramped = True
            progress().note("warning", text="no room in shared memory for a third buffer: no snapshots during a flush")

    def _is_free(self) -> bool:
        """Whether no flush is running. Only a flush removes a pin; if the flush died, the supervisor does."""
        if len(self._boards) < self._ranks.world_size:
            self._boards = snapshots.boards(self._memory.segment.folder)
        return not snapshots.any_pinned(self._boards.values())

    def _learn(self) -> None:
        """When a flush is over, its duration is noted; the time of the next one depends on it."""
        if self._pinned is None or not self._said or not self._is_free():
            return
        now, ended = time.monotonic(), max(board.unpinned_at for board in self._boards.values())
        # It ended in the middle of a step, which may be a long one. One of an older version does not tell when.
        self._flushes.append((ended if self._told_at <= ended <= now else now) - self._told_at)
        flush = flush_cost(statistics.median(self._flushes), self._memory.spare)
        self._interval.saved(self._pinned_at, self._memory.cost_s + flush)
        self._pinned = None

    def _announce(self) -> None:
        """Tells the supervisor of the pinned snapshot, or gives it up because some rank does not have it."""
        if self._pinned is None or self._said or self._ranks.rank != 0:
            return
        self._memory.wait()
        folder = self._memory.segment.folder
        awaited = self._is_awaited()
        found = snapshots.find(folder, self._pinned)
        if found is None and awaited:
            return
        self._said = True
        if found is not None:
            self._told_at = time.monotonic()
            progress().note("flush_due", step=self._pinned, keep=self._keep, stall_s=self.untold())
            return
        self._unpin("a rank had no room for its snapshot")
        # Unless it was promised, the next snapshot serves as well.
        self._pinned, self._owed = None, not self._promised

    def _is_awaited(self) -> bool:
        """Whether some rank's part of the pinned snapshot is still being copied, or on its way from another node. Each
        is committed or left out in the end; if not, the tier is given up."""
        segment, pinned = self._memory.segment, self._pinned or 0
        parts = [board for rank, board in segment.boards().items() if rank < self._ranks.world_size]
        return any(board.passed(segment.attempt) < pinned for board in parts)

    def give_up(self) -> tuple[str, bool]:
        """No snapshot will follow; the last ones stay. Returns why, and whether the only reason is that they were
        removed; the same on every rank. All ranks call it at the same step."""
        found = self._ranks.exchange([self._memory.over, self._memory.removed])
        problems = [problem for problem, _ in found if problem]
        self.close()
        self._ranks.exchange(None)  # no rank pins any more
        if self._pinned is not None and not self._said and self._ranks.rank == 0:
            self._unpin("it has no snapshot to be made from")
        why = str(problems[0]) if problems else "no snapshots: a rank had trouble with them"
        return why, all(removed for problem, removed in found if problem)

    def _unpin(self, error: str) -> None:
        """No flush will be made of the pinned snapshot, which is told if it was promised."""
        snapshots.clear_pins(self._memory.segment.folder, self._pinned)
        if self._promised:
            progress().note("checkpoint_failed", step=self._pinned, error=error)

    def empty(self) -> None:
        """No snapshot is left on any node. All ranks call it, after the end."""
        self._ranks.each_node(lambda: snapshots.empty(self._memory.segment.folder))

    def leave(self) -> None:
        """All ranks have committed the last snapshot, and it is told if a flush of it is due. None will follow. All
        ranks call it."""
        self.close()
        self._ranks.exchange(None)
        self._announce()

    def close(self) -> None:
        """The last snapshot is committed, and none will follow."""
        self._memory.close()
