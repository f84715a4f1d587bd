"""What a Checkpointer does with its memory tier: it opens it, and gives it up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..group import Ranks
from ..interval import Interval, Pace, flush_cost
from ..notices import Notices
from ..options import Every
from ..source import Source
from ..state.per_rank import Parts
from . import snapshots
from .memory import Memory
from .place import Place
from .tier import REMOVALS, Tier


class Tiered:
    """The part of a Checkpointer that has the memory tier."""

    _ranks: Ranks
    _parts: Parts
    _source: Source
    _segment: Path | None
    _snapshot_every: Every
    _run: str | None
    _attempt: int | None
    _done: int
    _pace: Pace
    _flush_s: float | None
    _interval: Interval
    _keep: int
    _tier: Tier | None
    _removals = 0

    def save(self) -> bool:
        """Whether the state after the last step() is durable now."""
        raise NotImplementedError

    @property
    def _notices(self) -> Notices:
        return Notices(self._ranks.rank)

    def _open_tier(self) -> None:
        """The memory tier is open if every rank can have it."""
        if self._segment is None or self._snapshot_every is None:
            return
        rank, nodes, segment = self._ranks.rank, self._ranks.nodes, self._segment
        if nodes.count > 2 and any(self._ranks.exchange(self._source.is_sharded())):
            nodes = replace(nodes, ring=True)
            # What some ranks have of a later step would be kept, as the newest of theirs.
            self._ranks.each_node(lambda: snapshots.drop(segment, lambda attempt, step: step > self._done))
        if nodes.several:
            # What a node has fetched for a restore, and will not keep.
            self._ranks.each_node(lambda: None if nodes.keeps(rank) else snapshots.empty(segment))
        place = Place(segment, rank, self._ranks.world_size, self._attempt or 0, self._run, nodes)
        memory, problem = None, None
        try:
            memory = Memory(place, self._parts, led=self._source.led, layouts=self._source.layouts, ranks=self._ranks)
        except (OSError, ValueError) as error:
            problem = str(error)
        problems = list(filter(None, self._ranks.exchange(problem)))
        if memory is not None and not problems:
            if self._flush_s is not None:
                self._interval.saved(self._interval.since, flush_cost(self._flush_s, memory.spare))
            every = None if self._snapshot_every == "auto" else self._snapshot_every
            self._tier = Tier(memory, self._ranks, every, self._pace, self._interval, self._keep, self.save, self._done)
        else:
            self._notices.no_snapshots(problems[0])

    def _close_tier(self) -> None:
        """The last snapshot is committed, and there is no memory tier any more."""
        tier, self._tier = self._tier, None
        if tier is not None:
            tier.close()

    def _leave_tier(self) -> None:
        """As _close_tier(), on all ranks, and the supervisor knows of a flush that is due."""
        tier, self._tier = self._tier, None
        if tier is not None:
            tier.leave()

    def _lose_tier(self) -> None:
        """The memory tier is given up, or made again if somebody has removed its files. Its snapshots go once this step
        is durable; if it cannot be saved, they stay."""
        assert self._tier is not None
        lost, self._tier = self._tier, None
        why, removed = lost.give_up()
        self._removals += removed
        anew = removed and self._removals <= REMOVALS
        then = "new snapshots are taken" if anew else "checkpoints go on, on disk"
        self._notices.say(f"{why}; this step is saved to disk, and {then}")
        if self.save():
            lost.empty()
        if anew:
            self._open_tier()
