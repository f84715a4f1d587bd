"""The ledger: every second of a run in one bucket, from its events alone. The buckets add up to the wall clock.

An attempt's time line, and the bucket of each stretch:

    started ─launch─ ready ─restore─ resumed ─first_step─ first step ─redone─ caught up ─productive─ failed
    failed ─detect─ verdict ─stop─ gone ─backoff─ next attempt started

The time of saves is taken out of the training stretches, as stall. Work that was lost and done again is productive the
first time and redone the second time. So it is counted once as what the failure cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from supervisor.core.model import Cause
from supervisor.core.telling.attempt_story import AttemptStory
from supervisor.core.telling.story import Story

BUCKETS = ("productive", "redone", "detect", "stop", "launch", "restore", "first_step", "stall", "backoff", "other")


@dataclass(frozen=True, slots=True)
class Ledger:
    """Seconds by bucket."""

    wall: float
    seconds: dict[str, float]

    @property
    def goodput(self) -> float:
        """The share of the wall clock that was spent on steps for the first time."""
        return self.seconds["productive"] / self.wall if self.wall > 0 else 0.0


def ledger(story: Story, now: float) -> Ledger:
    """The ledger of `story` up to its end, or up to `now` if it goes on."""
    seconds = dict.fromkeys(BUCKETS, 0.0)
    start = story.started
    if start is None:
        return Ledger(0.0, seconds)
    end = max(story.ended if story.ended is not None else now, start)
    mark = start
    for index, attempt in enumerate(story.attempts):
        # A file may be garbled. The time line must still be in order, with one end.
        started = min(max(mark, attempt.started), end)
        following = min(story.attempts[index + 1].started if index + 1 < len(story.attempts) else end, end)
        seconds["other" if index == 0 else "backoff"] += started - mark
        mark = started
        mark = _attempt(attempt, seconds, mark, following, index == 0)
    seconds["other"] += max(0.0, end - mark)
    return Ledger(end - start, seconds)


def _attempt(attempt: AttemptStory, seconds: dict[str, float], mark: float, following: float, first: bool) -> float:
    """Adds the stretches of one attempt from `mark` on. Returns their end, at most `following`."""
    over = attempt.failed if attempt.failed is not None else following
    finished = attempt.cause == Cause.FINISHED
    caught_up = attempt.first_step if first else (attempt.caught_up if attempt.caught_up is not None else over)
    # If nothing tells which steps these are, nobody knows whether they are new.
    trained_in = "other" if attempt.unplaced else "productive"
    stretches = [
        ("launch", attempt.ready),
        ("restore", attempt.resumed),
        ("first_step", attempt.first_step),
        ("redone", caught_up if attempt.first_step is not None and not attempt.unplaced else None),
        (trained_in if attempt.first_step is not None else "launch", over),
        ("detect", attempt.verdict if not finished else over),
        ("stop", attempt.gone if not finished else over),
    ]
    trained = {"redone": 0.0, "productive": 0.0}
    for bucket, until in stretches:
        if until is None:
            continue
        length = max(0.0, min(until, following) - mark)
        mark += length
        if bucket in trained:
            trained[bucket] += length
        else:
            seconds[bucket] += length
    stall = min(attempt.stall_s, trained["productive"])
    seconds["stall"] += stall
    seconds["productive"] += trained["productive"] - stall
    seconds["redone"] += trained["redone"]
    return mark


def _with_next(story: Story) -> list[tuple[AttemptStory, AttemptStory | None]]:
    """Each attempt with the next one."""
    attempts: list[AttemptStory | None] = [*story.attempts[1:], None]
    return list(zip(story.attempts, attempts, strict=False))


def recoveries(story: Story) -> list[float | None]:
    """For each attempt: seconds from its failure to the first new step of the next one. None if there was no such
    step."""
    found: list[float | None] = []
    for attempt, following in _with_next(story):
        known = following is not None and following.first_step is not None and attempt.failed is not None
        found.append(following.first_step - attempt.failed if known else None)  # type: ignore[union-attr,operator]
    return found


def lost_steps(story: Story) -> list[int | None]:
    """For each attempt: how many of its finished steps the next one had to do again. None if that is not known."""
    found: list[int | None] = []
    for attempt, following in _with_next(story):
        if following is None or following.from_step is None or attempt.to_step < 0:
            found.append(None)
        else:
            found.append(max(0, attempt.to_step - following.from_step))
    return found


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
        "recover_s": {
            "p50": percentile(times, 0.50),
            "p95": percentile(times, 0.95),
            "max": max(times, default=None),
        },
    }
