"""The numbers of a run that people look at: how far, how fast, how long yet, the loss, and what it does just now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.core.hangs.timings import Pace
from supervisor.core.telling.activity import Seen, activity
from supervisor.core.telling.story import Story
from supervisor.core.words import RunState
from trainer.rundir.codes import Phase
from trainer.rundir.records.beats import Beat


@dataclass(frozen=True, slots=True)
class Numbers:
    """As of one look. None: not known, or not told by the program."""

    step: int | None = None
    """Steps of the run that the newest attempt has done: after a restart, fewer than ever before."""
    total: int | None = None
    """Steps that the program will have done at its end."""
    step_ms: float | None = None
    """Milliseconds of a step: the median of the last looks."""
    eta_s: float | None = None
    """Seconds until the last step, at this speed. Only while the run makes steps."""
    loss: float | None = None
    """The last loss that a rank has told, of the lowest rank that tells one."""
    loss_step: int | None = None
    lr: float | None = None
    doing: str | None = None
    """What it does, and for how long, if it makes no step just now."""


def numbers(story: Story, beats: Sequence[Beat], pace: Pace, now: float) -> Numbers:
    """The numbers at `now`, on the run's time line. `beats`: those of the newest attempt."""
    placed = [beat.step for beat in beats if beat.placed and beat.phase >= Phase.TRAIN]
    attempt = story.attempt
    known = attempt.to_step if attempt is not None else -1
    step = None if story.unplaced else max([*placed, known])
    step = step if step is not None and step >= 0 else None
    total = max((beat.total for beat in beats if beat.total is not None), default=None)
    eta = None
    if step is not None and total is not None and story.state == RunState.RUNNING and pace.typical:
        eta = max(0, total - step) * pace.typical
    teller = next((beat for beat in beats if beat.loss is not None), None)
    # Beats have the time of a boot, a story that of the run.
    seen = [Seen(b.rank, b.phase, b.at + story.offset, b.doing, b.since + story.offset) for b in beats]
    return Numbers(
        step=step,
        total=total,
        step_ms=round(pace.typical * 1e3, 3) if pace.typical else None,
        eta_s=round(eta, 1) if eta is not None else None,
        loss=teller.loss if teller else None,
        loss_step=teller.loss_step if teller else None,
        lr=next((beat.lr for beat in beats if beat.lr is not None), None),
        doing=activity(story, seen, now, pace.typical),
    )
