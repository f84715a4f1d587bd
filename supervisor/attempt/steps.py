"""How far the ranks of an attempt are, as their beats tell."""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.core.telling.progress import Trained
from trainer.rundir.codes import Phase
from trainer.rundir.layout import AttemptDir
from trainer.rundir.records.beats import Beat, last_beats


def done(beats: Sequence[Beat]) -> dict[int, int]:
    """By rank, the last step finished in this attempt, of the ranks that have finished one; -1 if nothing tells
    which."""
    finished = [b for b in beats if b.phase >= Phase.TRAIN and b.step > (b.first_step if b.placed else 0)]
    return {b.rank: b.step if b.placed else -1 for b in finished}


def start(beats: Sequence[Beat]) -> int | None:
    """The step that the attempt went on from; -1 while nobody trains, None if nothing tells it."""
    ranks = done(beats)
    trained = [beat for beat in beats if beat.rank in ranks]
    if not all(beat.placed for beat in trained):
        return None
    return min((max(beat.first_step, 0) for beat in trained), default=-1)


def trained(beats: Sequence[Beat]) -> Trained | None:
    """None before any rank has finished a step."""
    steps = done(beats)
    at = [beat.at for beat in beats if beat.rank in steps]
    return Trained(max(steps.values()), start(beats), min(at)) if at else None


def last(folder: AttemptDir) -> int:
    """The highest step that the ranks of an attempt have left in their beats, or -1."""
    return max((b.step for b in last_beats(folder.beats) if b.phase >= Phase.TRAIN and b.placed), default=-1)
