"""The present activity of a run that finishes no step just now, in words, with its duration. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.core.model import Cause
from supervisor.core.size import human_seconds
from supervisor.core.stack import named
from supervisor.core.telling.attempt_story import AttemptStory
from supervisor.core.telling.story import Story
from supervisor.core.words import RunState
from trainer.rundir.codes import Doing, Phase

NOTABLE = 1.0
"""Seconds. A shorter save is not worth a word."""
SILENT, STEPS = 3.0, 5.0
"""A rank that trains is silent after this many seconds, and this many of its usual steps."""
_LAST = (Cause.FINISHED, Cause.STOPPED_BY_USER, Cause.PREEMPTED)
"""No attempt follows after these."""
_PHASES = {
    Phase.NONE: "starting",
    Phase.STARTUP: "setting up",
    Phase.RESTORE: "loading a checkpoint",
    Phase.FIRST_STEP: "first step",
    Phase.SAVE: "saving",
    Phase.EVAL: "evaluating",
    Phase.TEARDOWN: "ending",
}
_DOINGS = {
    Doing.IMPORTING: "importing torch",
    Doing.STEPPING: "first step",
    Doing.COMPILING: "compiling",
    Doing.EVALUATING: "evaluating",
    Doing.SAVING: "saving",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A rank, as its beat shows it. Times are on the time line of the run."""

    rank: int
    phase: Phase
    at: float
    """The time of its last step, or of the begin of its phase."""
    doing: Doing = Doing.NONE
    since: float = 0.0


def activity(story: Story, ranks: Sequence[Seen], now: float, typical: float) -> str | None:
    """For example `first step: compiling for 30 s`, `rank 0 evaluating for 3 min`. None if the run makes its steps, is
    over, or waits for its next attempt. `typical`: the seconds of a usual step, 0 if unknown."""
    attempt = story.attempt
    if attempt is not None and attempt.verdict is not None and attempt.cause in _LAST and not story.over:
        what = "waiting for the ranks" if attempt.gone is None and attempt.cause != Cause.FINISHED else "ending the run"
        return _said(what, attempt.verdict if attempt.gone is None else attempt.gone, now)
    if story.over or story.state in (RunState.LOST, RunState.BACKOFF):
        return None
    if attempt is None or attempt.gone is not None:
        if story.state == RunState.STARTING:
            return _said("importing torch", story.launched, now)
        return _said("starting the next attempt", (attempt.gone if attempt else None) or now, now)
    if attempt.verdict is not None:
        return _said("ending the attempt", attempt.verdict, now)
    if not ranks:
        return _said("starting the ranks", attempt.started, now)
    return _of_ranks(attempt, ranks, now, typical)


def _of_ranks(attempt: AttemptStory, ranks: Sequence[Seen], now: float, typical: float) -> str | None:
    found = {seen.rank: _of(seen, now) for seen in ranks}
    busy = {rank: one for rank, one in found.items() if one is not None}
    if busy:
        # The longest activity holds up the others.
        what, since = min(busy.values(), key=lambda one: one[1])
        same = [rank for rank, one in busy.items() if one[0] == what]
        who = "" if len(same) == len(ranks) else f"{named(sorted(same))} "
        return _said(f"{who}{what}", since, now)
    for pause in attempt.pauses.values():
        if not pause.get("over"):
            return str(pause.get("text", ""))
    last = max(seen.at for seen in ranks)
    return _said("no step", last, now) if now - last > max(SILENT, STEPS * typical) else None


def _of(seen: Seen, now: float) -> tuple[str, float] | None:
    """What the rank does, and since when. None if it makes steps, as far as it tells."""
    starts = seen.phase < Phase.TRAIN
    if seen.doing is not Doing.NONE and seen.since >= seen.at:
        what, since = _DOINGS[seen.doing], seen.since
        if seen.doing is Doing.COMPILING and starts:
            what = f"first step: {what}"
    elif seen.phase is Phase.TRAIN:
        return None
    else:
        what, since = _PHASES[seen.phase], seen.at
    return (what, since) if starts or now - since >= NOTABLE else None


def _said(what: str, since: float, now: float) -> str:
    return f"{what} for {human_seconds(max(0.0, now - since))}"
