"""What a run does while it makes no step, in words."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.core.telling.activity import Seen, activity
from supervisor.core.telling.story import Story, tell
from trainer.rundir.codes import Doing, Phase

BEGUN: list[dict[str, Any]] = [
    {"msg": "run_started", "mono": 10.0},
    {"msg": "attempt_started", "mono": 20.0, "attempt": 0, "wanted_mono": 10.0},
]
TRAINS = [*BEGUN, {"msg": "first_step", "mono": 30.0, "at_mono": 30.0, "step": 1, "from_step": 0}]
NOW = 100.0


def story(*events: dict[str, Any]) -> Story:
    return tell(events)


def calm(rank: int, **known: Any) -> Seen:
    """A rank that has made a step a moment ago."""
    return Seen(rank, Phase.TRAIN, NOW - 0.1, **known)


def evaluates(since: float) -> Seen:
    return Seen(0, Phase.TRAIN, 5.0, Doing.EVALUATING, since)


COMPILING = [Seen(rank, Phase.FIRST_STEP, 60.0, Doing.COMPILING, 70.0) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("events", "ranks", "words"),
    [
        (BEGUN[:1], [], "importing torch for 90 s"),
        (BEGUN, [], "starting the ranks for 90 s"),
        (BEGUN, [Seen(0, Phase.STARTUP, 60.0)], "setting up for 40 s"),
        (BEGUN, [Seen(0, Phase.STARTUP, 60.0, Doing.IMPORTING, 88.0)], "importing torch for 12 s"),
        (BEGUN, [Seen(0, Phase.STARTUP, 60.0, Doing.NONE, 88.0)], "setting up for 40 s"),
        (BEGUN, COMPILING, "first step: compiling for 30 s"),
        (TRAINS, [calm(0), calm(1)], None),
        (TRAINS, [calm(0, doing=Doing.SAVING, since=NOW - 0.05)], None),
        (TRAINS, [calm(0), Seen(1, Phase.SAVE, NOW - 20)], "rank 1 saving for 20 s"),
        # The save is over: a step was made since.
        (TRAINS, [calm(0, doing=Doing.SAVING, since=50.0)], None),
        (TRAINS, [evaluates(since=-80.0), Seen(1, Phase.TRAIN, 5.0)], "no step for 95 s"),
        (TRAINS, [evaluates(since=6.0), Seen(1, Phase.TRAIN, 5.0)], "rank 0 evaluating for 94 s"),
        (TRAINS, [Seen(0, Phase.TRAIN, 98.0)], None),
        ([*TRAINS, {"msg": "pause", "mono": 99.0, "rank": 0, "text": "rank 0 works"}], [calm(0)], "rank 0 works"),
        ([*TRAINS, {"msg": "stop_requested", "mono": 97.0, "by": "user"}], [calm(0)], "waiting for the ranks for 3 s"),
        ([*TRAINS, {"msg": "verdict", "mono": 95.0, "cause": "killed"}], [calm(0)], "ending the attempt for 5 s"),
        ([*TRAINS, {"msg": "verdict", "mono": 95.0, "cause": "finished"}], [calm(0)], "ending the run for 5 s"),
        ([*TRAINS, {"msg": "group_gone", "mono": 98.0}], [], "starting the next attempt for 2 s"),
        ([*TRAINS, {"msg": "run_ended", "mono": 98.0, "state": "failed"}], [Seen(0, Phase.TRAIN, 5.0)], None),
    ],
)  # fmt: skip
def test_what_a_run_does(events: list[dict[str, Any]], ranks: list[Seen], words: str | None) -> None:
    assert activity(story(*events), ranks, NOW, typical=0.5) == words
