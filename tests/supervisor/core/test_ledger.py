"""The ledger: from events alone, every second in one bucket; and the story that status and report tell."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.commands.attempt_words import attempt_words
from supervisor.core.model import History
from supervisor.core.telling.ledger import BUCKETS, ledger, percentile, report
from supervisor.core.telling.story import _TELLERS, tell


def event(mono: float, msg: str, **fields: Any) -> dict[str, Any]:
    return {"mono": mono, "ts": "2026-11-24T02:00:00Z", "msg": msg, **fields}


RECOVERED = [
    event(100.0, "run_started", fresh_budget=True),
    event(100.5, "attempt_started", attempt=0),
    event(102.0, "group_ready"),
    event(103.0, "resumed", step=0),
    event(103.6, "first_step", step=1, from_step=0, at_mono=103.5),
    event(108.0, "checkpoint_committed", step=40, seconds=0.25),
    event(110.1, "fault_injected", spec="kill:rank=1@step=50", fired_mono=110.0),
    event(
        110.1, "verdict", cause="killed", rank=1, signal=9, step=50, failed_mono=110.1, detect_s=0.0, reason="killed"
    ),
    event(110.3, "group_gone", step=50),
    event(110.3, "relaunch_scheduled", counted=True, delay_s=1.0, best_step=40, barren=0),
    event(111.3, "attempt_started", attempt=1),
    event(112.3, "group_ready"),
    event(113.3, "resumed", step=40),
    event(113.6, "first_step", step=41, from_step=40, at_mono=113.5),
    event(115.5, "caught_up", step=50),
    event(125.5, "verdict", cause="finished", step=150, failed_mono=125.5, detect_s=0.0, reason="all exited with 0"),
    event(125.6, "group_gone", step=150),
    event(125.6, "run_ended", exit_code=0, state="finished", step=150),
]


LOST = [*RECOVERED[:6], event(130.0, "run_started", fresh_budget=False)]
"""The supervisor is killed after 108.0, and another one comes at 130.0."""


def test_an_adopted_attempt_goes_on() -> None:
    """Nothing of it is over, and the time without a supervisor was trained in; what the dead one had been asked is
    void."""
    asked = [*LOST[:-1], event(109.0, "stop_requested", by="user", step=41), LOST[-1]]
    for events in (LOST, asked):
        story = tell([*events, event(130.1, "adopted", step=900, launcher_pid=7)])
        attempt = story.attempt

        assert attempt is not None and len(story.attempts) == 1
        assert (story.state, attempt.cause, attempt.gone, attempt.failed) == ("running", None, None, None)
        assert attempt.to_step == 900
        assert ledger(story, now=140.0).seconds["productive"] == pytest.approx(140.0 - 103.5 - 0.25)


def test_an_attempt_that_was_not_adopted_is_lost() -> None:
    """It is over at the last word of its supervisor, and what it is known to have done counts."""
    story = tell([*LOST, event(130.1, "takeover", step=900), event(130.2, "attempt_started", attempt=1)])
    lost = story.attempts[0]

    assert (lost.cause, lost.reason, lost.gone) == ("lost", "the supervisor died", 108.0)
    assert lost.to_step == story.high_step == 900
    assert story.attempts[1].cause is None


def test_a_night_without_a_supervisor_is_no_recovery() -> None:
    """The power is cut, and somebody resumes the run in the morning: from then on it recovers."""
    back = [
        event(28930.0, "run_started"),
        event(28930.5, "attempt_started", attempt=1),
        event(28933.0, "first_step", step=41, from_step=40, at_mono=28932.5),
    ]
    body = report(tell([*LOST[:-1], *back]), now=28940.0)

    assert body["ledger"]["stopped_s"] == 28930.0 - 108.0
    assert body["recover_s"]["max"] == body["attempts"][0]["recover_s"] == pytest.approx(2.5)


def test_every_stretch_has_its_bucket() -> None:
    """A run with one kill, second by second."""
    seconds = ledger(tell(RECOVERED), now=1e9).seconds

    assert {name: pytest.approx(value) for name, value in seconds.items()} == {
        "productive": 6.5 - 0.25 + 10.0,
        "redone": 2.0,
        "detect": 0.1,
        "stop": 0.2,
        "launch": 1.5 + 1.0,
        "restore": 1.0 + 1.0,
        "first_step": 0.5 + 0.2,
        "stall": 0.25,
        "standby": 0.0,
        "backoff": 1.0,
        "stopped": 0.0,
        "other": 0.5 + 0.1,
    }


def test_time_without_anybody_is_stopped() -> None:
    """It is nobody's failure: between a stop and the resume, and after the death of the machine. What the supervisors
    needed to end and to begin is not."""
    stopped = [
        *RECOVERED[:6],
        event(110.0, "stop_requested", by="user", step=50),
        event(110.5, "group_gone", step=50),
        event(110.6, "run_ended", exit_code=103, state="stopped"),
        event(170.6, "run_started", fresh_budget=True),
        event(171.0, "attempt_started", attempt=1),
        event(173.0, "first_step", step=51, from_step=50, at_mono=173.0),
        event(180.0, "checkpoint_committed", step=60),
    ]
    story = tell([*stopped, event(300.0, "run_started"), event(300.2, "takeover", step=60)])
    seconds = ledger(story, now=301.0).seconds

    assert seconds["stopped"] == pytest.approx(60.0 + 120.0)
    assert seconds["other"] == pytest.approx(0.5 + 0.1 + 0.4 + 1.0)
    assert seconds["backoff"] == 0.0
    assert story.reason == "" and story.attempts[1].cause == "lost"


def test_a_launch_that_begins_anew() -> None:
    """What `--resume never` moves aside is no progress to get past: a smaller step is new, and no step was lost."""
    events = [*RECOVERED[:-1], event(126.0, "relaunch_scheduled", counted=True, best_step=150, barren=2)]
    events.append(event(130.0, "run_started", resume="never", fresh_budget=False))
    assert (tell(events).history, tell(events).barren) == (History(), 0)

    events += [
        event(130.1, "takeover", step=150),
        event(131.0, "attempt_started", attempt=2),
        event(133.0, "first_step", step=1, from_step=0, at_mono=133.0),
        event(138.0, "checkpoint_committed", step=30),
        event(140.0, "verdict", cause="killed", rank=0, step=40, failed_mono=140.0),
    ]
    story = tell(events)
    assert (story.high_step, story.checkpoint_step) == (40, 30)
    assert report(story, now=140.0)["lost_steps"] == 10
    assert ledger(story, now=140.0).seconds["productive"] == pytest.approx(6.5 - 0.25 + 10.0 + 7.0)


@pytest.mark.parametrize(
    ("fault", "cause", "step"), [("term", "killed", 900), ("stop", "killed", 50), ("slow", "killed", 50)]
)
def test_a_fault_that_ended_nothing(fault: str, cause: str, step: int) -> None:
    """The script took it, and went on, or the attempt died of something else: nobody was late to notice."""
    events = [
        *RECOVERED[:6],
        event(110.1, "fault_injected", spec=f"{fault}:rank=1@step=50", step=50, fired_mono=110.0),
        event(900.5, "verdict", cause=cause, rank=1, step=step, failed_mono=900.0, reason="killed"),
    ]
    attempt = tell(events).attempt

    assert attempt is not None and (attempt.failed, attempt.detect_s) == (900.0, 0.5)


def test_an_attempt_that_died_as_it_began() -> None:
    """It has loaded nothing: what the one before had lost is told by the one after, which both have waited for."""
    events = [
        *RECOVERED[:-7],
        event(112.0, "verdict", cause="killed", rank=0, step=-1, failed_mono=112.0, reason="killed"),
        event(112.3, "attempt_started", attempt=2),
        *RECOVERED[-6:],
    ]
    first, second, third = report(tell(events), now=1e9)["attempts"]

    assert (first["lost_steps"], second["lost_steps"], third["lost_steps"]) == (10, None, None)
    assert (first["recover_s"], second["recover_s"]) == (pytest.approx(3.5), pytest.approx(1.5))
    assert [words.cost for words in attempt_words(tell(events))] == [
        "went on from step 40, lost 10 steps, detected in 0.100 s, back in 3.50 s",
        "back in 1.50 s",
        "",
    ]


def test_report_of_a_recovery() -> None:
    """Detection counts from the blow, recovery to the first new step, lost steps to where the next attempt began."""
    body = report(tell(RECOVERED), now=1e9)

    first, second = body["attempts"]
    assert (first["from_step"], first["to_step"], second["from_step"], second["to_step"]) == (0, 50, 40, 150)
    assert (first["cause"], first["rank"], first["signal"], first["lost_steps"]) == ("killed", 1, 9, 10)
    assert first["detect_s"] == pytest.approx(0.1)
    assert first["recover_s"] == pytest.approx(3.5)
    assert body["recover_s"]["p50"] == body["recover_s"]["max"] == pytest.approx(3.5)
    assert body["lost_steps"] == 10 and body["state"] == "finished"


def test_clock_that_began_anew() -> None:
    """After a reboot the monotonic clock is small again; the run's time goes on by the wall clock."""
    before = RECOVERED[:6]
    after = [
        {**event(5.0, "run_started"), "ts": "2026-11-24T03:00:00Z"},
        {**event(6.0, "attempt_started", attempt=1), "ts": "2026-11-24T03:00:01Z"},
        {**event(9.0, "first_step", step=41, from_step=40, at_mono=9.0), "ts": "2026-11-24T03:00:04Z"},
    ]
    story = tell([*before, *after])

    assert story.attempts[0].cause == "lost"
    assert story.attempts[1].first_step == pytest.approx(108.0 + 3600.0 + 4.0)
    book = ledger(story, now=10.0 + story.offset)
    assert book.wall == pytest.approx(8.0 + 3600.0 + 5.0)
    assert sum(book.seconds.values()) == pytest.approx(book.wall)


times = st.floats(0.0, 1e6, allow_nan=False)
steps = st.one_of(st.integers(-5, 10**9), st.none(), st.text(max_size=3))
random_events = st.lists(
    st.builds(
        lambda mono, msg, step, failed, cause, state: event(
            mono, msg, step=step, from_step=step, attempt=step, failed_mono=failed, at_mono=failed, cause=cause,
            state=state, seconds=failed, spec="kill", fired_mono=failed, counted=True, signature=["a"],
        ),
        times,
        st.sampled_from(sorted(_TELLERS)),
        steps,
        st.one_of(times, st.none(), st.just("x")),
        st.sampled_from(["finished", "killed", None, 3]),
        st.sampled_from(["finished", "failed", None]),
    ),
    max_size=30,
)  # fmt: skip


@given(random_events, times)
def test_buckets_add_up_to_the_wall_clock(events: list[dict[str, Any]], now: float) -> None:
    """Whatever events a file holds, in whatever order, nothing is counted twice, left out or negative."""
    events = [event(0.0, "run_started"), *sorted(events, key=lambda e: e["mono"])]
    story = tell(events)

    book = ledger(story, now + 1e6)

    assert sum(book.seconds.values()) == pytest.approx(book.wall, abs=1e-6)
    assert all(value >= -1e-9 for value in book.seconds.values())
    assert 0.0 <= book.goodput <= 1.0 + 1e-9
    assert set(report(story, now + 1e6)["ledger"]) == {f"{bucket}_s" for bucket in BUCKETS}


@given(st.lists(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(), st.floats()))))
def test_any_garbage_has_a_story(events: list[dict[str, Any]]) -> None:
    """Foreign lines in events.jsonl are passed over."""
    story = tell(events)

    assert report(story, story.last)["state"] == story.state


@given(st.lists(st.floats(0, 100), min_size=1), st.sampled_from([0.5, 0.95, 1.0]))
def test_percentile_is_a_value_seen(values: list[float], share: float) -> None:
    """At least `share` of the values are at most the percentile, which is one of them."""
    found = percentile(values, share)

    assert found in values
    assert sum(v <= found for v in values) >= share * len(values)
    assert percentile([], share) is None
