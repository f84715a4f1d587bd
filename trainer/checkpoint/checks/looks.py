"""What a Checkpointer looks at in its steps: the state can be saved, is the same on all ranks, nothing is missing."""

from __future__ import annotations

from ..errors import ReplicasDiffer
from ..group import Ranks
from ..memory.tier import Tier, Wish
from ..notices import Notices
from ..replicas import Replicas
from ..source import Source
from ..state.packing import Packed
from .unsaved import Unsaved


class Looks:
    """The part of a Checkpointer that looks."""

    _ranks: Ranks
    _replicas: Replicas
    _source: Source
    _tier: Tier | None
    _unsaved: Unsaved
    _attempt: int | None
    _done: int
    _stepped = False

    def _look(self, agreed: Wish, snapshot: bool) -> None:
        """Called at every step: the state can be saved, and is the same on all ranks, as far as that is looked at."""
        first, self._stepped = not self._stepped, True
        if agreed.compare or snapshot or (first and self._replicas.equal_at is None):
            self._compare()
        # A restart is in a hurry, and its program was looked at before.
        whole = self._unsaved.due() and not self._attempt
        if first or agreed.layout or whole:
            shared, own = self._capture()
            if first or agreed.layout:
                # Optimizers make their states in their first step. If they cannot be saved, it is known now.
                self._source.layouts.agree(shared, self._ranks)
            if whole:
                self._tell_what_is_left_out(shared, own)

    def _tell_what_is_left_out(self, shared: Packed, own: Packed) -> None:
        notices = Notices(self._ranks.rank)
        try:
            for sentence in self._unsaved.look(shared, own):
                notices.say(sentence)
        except Exception as error:  # it looks at objects of anybody; training must not end of it
            notices.log(f"whether anything is left out of the checkpoints could not be looked at: {error!r}")

    def _compare(self) -> Packed | None:
        """All ranks have the same state, or an error is raised and no snapshot of another state is left. Returns it."""
        try:
            new, compared = self._source.compare(self._done)
        except ReplicasDiffer as error:
            if self._tier is not None:
                self._tier.go_back(error.equal_at)
            raise
        if new and self._tier is not None:
            self._tier.forget()
        return compared

    def _capture(self, compared: Packed | None = None) -> tuple[Packed, Packed]:
        return self._source.whole(self._done, self._ranks.rank, compared)
