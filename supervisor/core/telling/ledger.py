"""The ledger: every second of a run in one bucket, from its events alone. The buckets add up to the wall clock.

An attempt's time line, and the bucket of each stretch:

    started ─launch─ ready ─restore─ resumed ─first_step─ first step ─redone─ caught up ─productive─ failed
    failed ─detect─ verdict ─stop─ gone ─backoff─ next attempt started

The time of saves is taken out of the training stretches, as stall, and what the standbys have cost the steps, as
standby. Work that was lost and done again is productive the
first time and redone the second time. So it is counted once as what the failure cost. The time between the end of a run
and its next supervisor, or without a supervisor, is stopped, if no attempt lived in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from supervisor.core.model import Cause
from supervisor.core.standby.cost import median
from supervisor.core.telling.attempt_story import AttemptStory
from supervisor.core.telling.story import Story

MEANING = {
    "productive": "steps that were done for the first time",
    "redone": "steps that were done again, because a failure had lost them",
    "detect": "from a failure until it was noticed",
    "stop": "until nothing of the ended attempt was alive",
    "launch": "until all ranks were there: imports, rendezvous",
    "restore": "from there until the state was loaded",
    "first_step": "from there until the first step was done: data, compilation",
    "stall": "training waited for a save",
    "standby": "steps took longer while the next worker group was made",
    "backoff": "the wait before a restart",
    "stopped": "the run was stopped, or nobody ran it",
    "other": "the supervisor's own start and end; steps whose number nothing tells",
}
"""The buckets, and what each second in them was spent on."""
BUCKETS = tuple(MEANING)


@dataclass(frozen=True, slots=True)
class Ledger:
    """Seconds by bucket."""

    wall: float
    seconds: dict[str, float]

    @property
    def goodput(self) -> float:
        """The share of the wall clock that was spent on steps for the first time."""
        return self.seconds["productive"] / self.wall if self.wall > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the time line, in seconds of the run's clock. `attempt` is None between two attempts."""

    bucket: str
    begin: float
    end: float
    attempt: int | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def ledger(story: Story, now: float) -> Ledger:
    """The ledger of `story` up to its end, or up to `now` if it goes on."""
    seconds = dict.fromkeys(BUCKETS, 0.0)
    if story.started is None:
        return Ledger(0.0, seconds)
    trained = dict.fromkeys((attempt.number for attempt in story.attempts), 0.0)
    for stretch in stretches(story, now):
        seconds[stretch.bucket] += stretch.seconds
        if stretch.bucket == "productive" and stretch.attempt is not None:
            trained[stretch.attempt] += stretch.seconds
    for attempt in story.attempts:
        stall = min(attempt.stall_s, trained[attempt.number])
        # A garbled file may have two attempts of one number.
        trained[attempt.number] -= stall
        seconds["stall"] += stall
        seconds["productive"] -= stall
    # Each is above or below the truth by chance. Their sum is not, so only that is not below 0.
    paid = sum(one.seconds for attempt in story.attempts for one in attempt.standbys)
    seconds["standby"] = min(max(0.0, paid), max(0.0, seconds["productive"]))
    seconds["productive"] -= seconds["standby"]
    return Ledger(_end(story, now) - story.started, seconds)


def _end(story: Story, now: float) -> float:
    return max(story.ended if story.ended is not None else now, story.started or 0.0)


def stretches(story: Story, now: float) -> list[Stretch]:
    """The time line from the run's start to its end, or to `now`: in order, without holes. The seconds of saves are in
    the training stretches."""
    if story.started is None:
        return []
    found: list[Stretch] = []
    end, mark = _end(story, now), story.started
    for index, attempt in enumerate(story.attempts):
        # A file may be garbled. The time line must still be in order, with one end.
        started = min(max(mark, attempt.started), end)
        following = min(story.attempts[index + 1].started if index + 1 < len(story.attempts) else end, end)
        found += _between(story, mark, started, "other" if index == 0 else "backoff")
        own = _of_attempt(attempt, started, following)
        found += own
        mark = own[-1].end if own else started
    return [stretch for stretch in [*found, *_between(story, mark, end, "other")] if stretch.end > stretch.begin]


def _between(story: Story, mark: float, until: float, bucket: str) -> list[Stretch]:
    """The time without an attempt. What lies beside a time in which nobody ran the run is that supervisor's end, or
    the next one's start."""
    found: list[Stretch] = []
    for begin, end in story.unmanned:
        begin, end = max(begin, mark), min(end, until)
        if end > begin:
            bucket = "other"
            found += [Stretch(bucket, mark, begin), Stretch("stopped", begin, end)]
            mark = end
    return [*found, Stretch(bucket, mark, max(mark, until))]


def _of_attempt(attempt: AttemptStory, mark: float, following: float) -> list[Stretch]:
    """The stretches of one attempt from `mark` on. The last one ends at most at `following`."""
    over = attempt.failed if attempt.failed is not None else following
    finished = attempt.cause == Cause.FINISHED
    caught_up = attempt.first_step if attempt.anew else (attempt.caught_up if attempt.caught_up is not None else over)
    # If nothing tells which steps these are, nobody knows whether they are new.
    trained_in = "other" if attempt.unplaced else "productive"
    marks = [
        ("launch", attempt.ready),
        ("restore", attempt.resumed),
        ("first_step", attempt.first_step),
        ("redone", caught_up if attempt.first_step is not None and not attempt.unplaced else None),
        (trained_in if attempt.first_step is not None else "launch", over),
        ("detect", attempt.verdict if not finished else over),
        ("stop", attempt.gone if not finished else over),
    ]
    found = []
    for bucket, until in marks:
        if until is not None:
            end = max(mark, min(until, following))
            found.append(Stretch(bucket, mark, end, attempt.number))
            mark = end
    return found


def recoveries(story: Story) -> list[float | None]:
    """For each attempt: seconds from its failure to the next step of any attempt, without those in which the run was
    stopped. None if there was no such step, or if the run was over between them."""
    found: list[float | None] = []
    stopped = [stretch for stretch in stretches(story, story.last) if stretch.bucket == "stopped"]
    back: float | None = None
    for attempt in reversed(story.attempts):
        back = None if attempt.last else back
        if back is None or attempt.failed is None:
            found.append(None)
        else:
            idle = sum(max(0.0, min(each.end, back) - max(each.begin, attempt.failed)) for each in stopped)
            found.append(back - attempt.failed - idle)
        back = None if attempt.anew else attempt.first_step if attempt.first_step is not None else back
    return found[::-1]


def successors(story: Story) -> list[AttemptStory | None]:
    """For each attempt: the one that went on after it. Others may have begun between them, and ended before they had
    loaded a state."""
    found: list[AttemptStory | None] = []
    following: AttemptStory | None = None
    for attempt in reversed(story.attempts):
        found.append(following)
        if attempt.anew:
            following = None
        elif attempt.from_step is not None or attempt.first_step is not None:
            following = attempt
    return found[::-1]


def lost_steps(story: Story) -> list[int | None]:
    """For each attempt: how many of its finished steps its successor had to do again. None if that is not known."""
    return [
        None
        if later is None or later.from_step is None or attempt.to_step < 0
        else max(0, attempt.to_step - later.from_step)
        for attempt, later in zip(story.attempts, successors(story), strict=True)
    ]


def missed(attempt: AttemptStory) -> dict[str, Any] | None:
    """The save that the attempt has not loaded, and the place where it is kept. None if it has missed nothing."""
    if attempt.over is None:
        return None
    return {key: attempt.over.get(key) for key in ("path", "step", "kept", "text")}


def percentile(values: list[float], share: float) -> float | None:
    """The nearest-rank percentile; None if there are no values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def standbys(story: Story) -> dict[str, Any]:
    """What the standbys of the run have cost the training beside them: how many were measured; of one of them, the
    median: by so much of a step its steps were longer, for so many seconds of training, which makes so many seconds.
    None where none was measured."""
    paid = [one for attempt in story.attempts for one in attempt.standbys]
    found = {
        "cost_s": median(one.seconds for one in paid),
        "share": median(one.share for one in paid),
        "made_s": median(one.made_s for one in paid),
    }
    return {"measured": len(paid), **{key: None if v is None else round(v, 4) for key, v in found.items()}}


def report(story: Story, now: float) -> dict[str, Any]:
    """The content of `report --json`, without the run's name."""
    book = ledger(story, now)
    recovered, lost = recoveries(story), lost_steps(story)
    times = [r for r in recovered if r is not None]
    return {
        "state": story.state,
        "exit_code": story.exit_code,
        "reason": story.reason,
        "wall_s": round(book.wall, 6),
        "goodput": round(book.goodput, 6),
        "lost_steps": sum(steps or 0 for steps in lost),
        "attempts": [
            {
                "attempt": a.number,
                "from_step": a.from_step,
                "to_step": a.to_step if a.to_step >= 0 else None,
                "cause": a.cause,
                "rank": a.rank,
                "signal": a.signal,
                "reason": a.reason,
                "lost_steps": lost[i],
                "started_over": missed(a),
                "detect_s": a.detect_s,
                "recover_s": round(recovered[i], 6) if recovered[i] is not None else None,  # type: ignore[arg-type]
            }
            for i, a in enumerate(story.attempts)
        ],
        "ledger": {f"{bucket}_s": round(book.seconds[bucket], 6) for bucket in BUCKETS},
        "standby": standbys(story),
        "recover_s": {
            "p50": percentile(times, 0.50),
            "p95": percentile(times, 0.95),
            "max": max(times, default=None),
        },
    }
