"""The progress of the ranks of an attempt, from their beats."""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.core.telling.progress import Trained
from trainer.rundir.codes import Phase
from trainer.rundir.layout import AttemptDir
from trainer.rundir.records.beats import Beat, last_beats


def done(beats: Sequence[Beat]) -> dict[int, int]:
    """For each rank that has finished a step in this attempt: its last one; -1 if the step is unknown."""
    finished = [b for b in beats if b.phase >= Phase.TRAIN and b.step > (b.first_step if b.placed else 0)]
    return {b.rank: b.step if b.placed else -1 for b in finished}


def made(beats: Sequence[Beat]) -> dict[int, int]:
    """For each rank that trains, the number of steps that it has finished in this attempt."""
    return {b.rank: b.step - max(b.first_step, 0) for b in beats if b.phase >= Phase.TRAIN}


def start(beats: Sequence[Beat]) -> int | None:
    """The step that the attempt went on from. -1 while no rank trains, None if it is unknown."""
    ranks = done(beats)
    trained = [beat for beat in beats if beat.rank in ranks]
    if not all(beat.placed for beat in trained):
        return None
    return min((max(beat.first_step, 0) for beat in trained), default=-1)


def trained(beats: Sequence[Beat]) -> Trained | None:
    """The highest finished step. None before any rank has finished a step."""
    steps = done(beats)
    at = [beat.at for beat in beats if beat.rank in steps]
    if not at:
        return None
    teller = next((beat for beat in beats if beat.loss is not None), None)
    return Trained(
        max(steps.values()),
        start(beats),
        min(at),
        loss=teller.loss if teller else None,
        loss_step=teller.loss_step if teller else None,
        lr=next((beat.lr for beat in beats if beat.lr is not None), None),
    )


def last(folder: AttemptDir) -> int:
    """The highest step in the beats of an attempt's ranks, or -1."""
    return max((b.step for b in last_beats(folder.beats) if b.phase >= Phase.TRAIN and b.placed), default=-1)
