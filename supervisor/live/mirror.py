"""The beats of ranks on other nodes, as the leader's supervisor hears of them, for people. A file like that of beats;
nothing is decided by it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from trainer.rundir.layout import AttemptDir
from trainer.rundir.records import beats as b
from trainer.rundir.records.beats import Beat, create_beats, last_beats


class Mirror(b._Mapped):
    """The file of one attempt, in the supervisor that leads."""

    @classmethod
    def new(cls, folder: AttemptDir, world: int) -> Mirror:
        """The file is there, and says nothing yet. OSError if it cannot be made."""
        create_beats(folder.mirror, world)
        return cls(folder.mirror)

    def put(self, beats: Iterable[Beat], offset: float) -> None:
        """The file says `beats`. Their clock minus ours is `offset` seconds."""
        for beat in beats:
            if 0 <= beat.rank < self._words[b._H_WORLD]:
                self._put_one(replace(beat, at=beat.at - offset, since=beat.since - offset))

    def _put_one(self, beat: Beat) -> None:
        base = (beat.rank + 1) * b._WORDS
        values = {
            b._STEP: beat.step,
            b._PHASE: beat.phase,
            b._NS: int(beat.at * 1e9),
            b._SOURCE: beat.source,
            b._SAVES: beat.saves,
            b._LOWEST: beat.first_step,
            b._OWN: int(beat.own * 1e9),
            b._ROLE: beat.role,
            b._TOTAL: beat.total or 0,
            b._TOLD: 0 if beat.loss_step is None else beat.loss_step + 1,
            b._DOING: beat.doing,
            b._SINCE: int(beat.since * 1e9),
        }
        for word, value in values.items():
            self._words[base + word] = value
        self._doubles[base + b._LOSS] = beat.loss or 0.0
        self._doubles[base + b._LR] = beat.lr or 0.0
        self._words[base + b._PID] = beat.pid


def all_beats(folder: AttemptDir) -> list[Beat]:
    """The beats of an attempt's ranks on all nodes, in order of rank, as of now. Pids are those of their nodes."""
    return sorted([*last_beats(folder.beats), *last_beats(folder.mirror)], key=lambda beat: beat.rank)
