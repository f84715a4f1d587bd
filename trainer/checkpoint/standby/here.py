"""What a Checkpointer knows of its attempt. In a rank of a standby it learns that in restore()."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...rank import parking
from ...rank.progress import progress
from ...rundir.environment import supervised
from ...rundir.layout import RunDir
from ...rundir.records.rollback import Rollback
from .. import options
from ..disk.assembly import Loaded
from ..disk.hold import Hold, hold
from ..group import Ranks
from ..interval import Pace
from ..nodes.fence import Fence
from ..nodes.lineage import recorded, went_on
from ..state.buckets import Buckets
from ..state.packing import Packed
from ..state.per_rank import Parts
from .lending import Lending, Mapped, give_back_later, gpus_of, on_gpu
from .warm_up import warm


class Here:
    """The part of a Checkpointer that knows its attempt."""

    _parts: Parts
    _buckets: Buckets
    _segment: Path | None
    _ranks: Ranks
    _folder: Path
    _hold: Hold | None = None
    _mapped: Mapped | None = None
    _were_several = False
    """Whether the ranks of this run were on several nodes. Rank 0 knows it."""

    def _waits(self, resume: str | None, park: bool, warm_up: Callable[[], object] | None) -> None:
        """The program's own choices: the mode of resume, whether a standby waits in restore(), and its warm-up."""
        self._chosen, self._park, self._warm_up = resume, park, warm_up
        self._know()

    def _know(self) -> None:
        """It knows what its attempt is told, as far as the attempt has begun."""
        here = supervised()
        self.resume = options.checked_resume(self._chosen or (here.resume if here else "auto"))
        self._run = here.run.path.name if here else None
        self._home: RunDir | None = here.run if here else None
        self._attempt: int | None = here.attempt_number if here else None
        self._rollback: Rollback | None = here.rollback if here else None
        self._pace = Pace(here.mtbf_s) if here and here.mtbf_s is not None else Pace()
        self._flush_s = here.flush_s if here else None

    def _record(self, step: int) -> None:
        """If the ranks of this run are, or were, on several nodes, it is recorded that its attempt goes on from `step`.
        CheckpointError or OSError if it cannot be: what a lost node commits later could not be told apart."""
        if (home := self._home) is None or (number := self._attempt) is None:
            return
        if self._ranks.nodes.several:
            self._ranks.lead(lambda: went_on(home, number, step))
        elif self._ranks.rank == 0 and recorded(home).steps:
            went_on(home, number, step)
            self._were_several = True

    @property
    def _fence(self) -> Fence | None:
        """What its ranks may still save, and what counts. None if the ranks of this run are, and were, on one node,
        where no rank outlives its attempt."""
        several = self._ranks.nodes.several
        if self._home is None or not (several or self._were_several):
            return None
        return Fence(self._home, self._attempt, by_ranks=several)

    def _take_folder(self) -> None:
        """Without a supervisor, no other program saves in its folder until close(). StateError, on every rank, if one
        does."""

        def take() -> None:
            self._hold = hold(self._folder, progress().disk)

        if self._home is None:
            self._ranks.lead(take)

    def _wait(self) -> None:
        """In a rank of a standby: it has warmed up, of which nothing is left in its parts and generators, and returns
        when its attempt begins."""
        if (waiting := parking.current()) is not None:
            # In a hurry, nobody warms up: a step has collectives, and all ranks must agree on them.
            if self._warm_up is not None and not any(self._ranks.any(waiting.is_over)):
                warm(self._warm_up, self._parts, self._buckets)
            if on_gpu() and self._segment is not None:
                self._mapped = Mapped(self._segment, gpus_of(self._parts))
            waiting.wait(None if self._mapped is None else self._mapped.refresh)
            self._know()

    def _lending(self, fresh: Packed) -> Lending | None:
        """What may be lent to a restore of its parts, of which `fresh` was captured. None: nothing."""
        return Lending(self._parts, fresh, self._mapped) or None

    def _reached(self, start: int, loaded: Loaded | None) -> int:
        """`start`, the step from which restore() goes on, by `loaded`. The supervisor knows that a standby can wait
        there."""
        parking.reached(self._park)
        if on_gpu():
            give_back_later(self._mapped, loaded if loaded is not None and loaded.source == "memory" else None)
            self._mapped = None
        return start
