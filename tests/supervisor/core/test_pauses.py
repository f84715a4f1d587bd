"""The hang rule with samples of the stacks: they tell a pause from a hang, and what is told meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.core.hangs.calls import TIMES
from supervisor.core.hangs.limits import (
    BUSY_UNTOLD,
    FROZEN,
    IDLE_UNTOLD,
    MOVING_LIMIT,
    SAMPLES_LATE,
)
from supervisor.core.hangs.motion import Kind
from supervisor.core.hangs.pauses import TOLD_AFTER, tell
from supervisor.core.model import Observation, Policy
from supervisor.core.sample import Sample
from tests.support.silence import (
    LOCK,
    LOOP,
    MET,
    MOVING,
    NATIVE,
    TICK,
    UPLOAD,
    WORK,
    trained,
)


@pytest.mark.parametrize(
    ("does", "busy", "kind", "announces", "at_least", "at_most"),
    [
        (MOVING, True, Kind.MOVING, False, MOVING_LIMIT, MOVING_LIMIT + 2),
        (NATIVE, True, Kind.NATIVE, False, FROZEN[Kind.NATIVE], FROZEN[Kind.NATIVE] + 10),
        (UPLOAD, False, Kind.ANSWERED, True, FROZEN[Kind.ANSWERED], FROZEN[Kind.ANSWERED] + 10),
        (LOCK, False, Kind.LOCKED, False, 10.0, 17.6),
        (LOOP, True, Kind.PYTHON, False, 50.0, 62.6),
        # A loop that says its phases has a shorter limit for what is frozen.
        (LOCK, False, Kind.LOCKED, True, 3.0, 9.0),
        (LOOP, True, Kind.PYTHON, True, 15.0, 21.0),
    ],
)
def test_samples_tell_a_pause_from_a_hang(
    does: Sample, busy: bool, kind: Kind, announces: bool, at_least: float, at_most: float
) -> None:
    """While another rank stands in a collective. The usual pause is 2.5 s here."""
    life = trained(announces=announces, ranks=2)
    life.tick = 0.5
    life.set(1, held="futex 7")

    after, silence = life.pass_time(4000.0, frozenset({0} if busy else ()), {0: does, 1: MET})

    assert silence is not None and (silence.rank, silence.kind) == (0, kind)
    assert at_least <= after <= at_most


def test_a_call_that_was_seen_to_end() -> None:
    """The next time it may take ten times as long, and a minute at least, not ten minutes. Another call of the same
    function may, and so may this one in a run that has not seen it end."""
    life = trained(announces=False, ranks=2)
    life.tick = 0.5
    for first in (20.0, 8.0):
        assert life.pass_time(first, frozenset({0}), {0: NATIVE, 1: MET})[1] is None
        assert life.train(30, 0.1) is None
    other = replace(NATIVE, main=replace(NATIVE.main, frames=(replace(WORK[0], line=41),)))
    assert life.pass_time(400.0, frozenset({0}), {0: other, 1: MET})[1] is None
    # It leaves that call: now it is known, too.
    assert life.pass_time(3.0, frozenset({0}), {0: MOVING, 1: MET})[1] is None
    assert life.train(30, 0.1) is None
    life.hang = replace(life.hang, pace=replace(life.hang.pace, slowest=0.1))
    assert len(life.hang.pace.calls) == 2

    after, silence = life.pass_time(4000.0, frozenset({0}), {0: NATIVE, 1: MET})

    assert silence is not None and silence.kind == Kind.NATIVE
    assert silence.limit == pytest.approx(TIMES * 20.0, abs=TIMES)
    assert silence.limit <= after <= silence.limit + 10


@settings(max_examples=20, deadline=None)
@given(
    usual=st.floats(0.05, 1.0),
    does=st.lists(st.tuples(st.sampled_from([MOVING, NATIVE, UPLOAD, LOCK]), st.floats(1.0, 9.0)), max_size=6),
    announces=st.booleans(),
)
def test_a_pause_that_changes_is_none(usual: float, does: list[tuple[Sample, float]], announces: bool) -> None:
    """Whatever a rank does in turn, as long as each bit of it is shorter than its limit."""
    life = trained(usual, announces=announces, ranks=2)
    life.tick = 0.5
    life.set(1, held="futex 7")
    for sample, seconds in [(MOVING, 2.0 + 30 * usual), *[each for one in does for each in (one, (MOVING, 3.0))]]:
        seconds = min(seconds, 2.0) if announces and sample is LOCK else seconds
        assert life.pass_time(seconds, frozenset({0}), {0: sample, 1: MET})[1] is None


def test_no_samples_no_change() -> None:
    """Where they are to be had and do not come, the limits without them hold, a little later."""
    life = trained(announces=False)
    life.set(sampled=True)
    after, silence = life.pass_time(300.0)
    assert silence is not None and silence.kind == "idle"
    assert IDLE_UNTOLD[1] + SAMPLES_LATE - TICK <= after <= IDLE_UNTOLD[1] + SAMPLES_LATE + 4 * TICK


def test_nobody_is_sampled_in_calm_operation() -> None:
    """Nor where somebody has given a limit."""
    life = trained(0.1, announces=False, ranks=2)
    life.set(sampled=True)
    for _ in range(50):
        assert life.train(1, 0.1) is None and not life.asked
    given = trained(policy=Policy(hang_timeout=50.0))
    assert given.pass_time(40.0, doing={0: LOCK})[1] is None and not given.asked


def test_pauses_are_told_once_and_end() -> None:
    life = trained(announces=False, ranks=2)
    told, events = tell({}, life.hang, Observation(life.now, tuple(life.views)))
    assert not told and not events
    for _ in range(int(3 * TOLD_AFTER)):
        assert life.pass_time(1.0, frozenset({0}), {0: MOVING, 1: MET})[1] is None
        told, new = tell(told, life.hang, Observation(life.now, tuple(life.views)))
        events += new
    assert [(e.event, e.fields["rank"], e.fields["kind"], e.fields["limit_s"]) for e in events] == [
        ("pause", 0, Kind.MOVING, MOVING_LIMIT)
    ]
    assert "evaluate (train.py:40); rank 1 waits" in events[0].fields["text"]

    assert life.train(2, 0.1) is None
    told, events = tell(told, life.hang, Observation(life.now, tuple(life.views)))
    assert not told and [e.fields["over"] for e in events] == [True]


def test_an_evaluation_that_has_ended_once_may_come_again() -> None:
    """Where no sample can be taken, only its length tells it from an endless loop. It is not forgotten in the thousands
    of steps until the next one."""
    life, one, limit = trained(announces=False), frozenset({0}), BUSY_UNTOLD[2]
    evaluation = 1.1 * limit
    silence = life.pass_time(evaluation, one)[1]
    assert silence is not None and silence.kind == "busy"
    # The next attempt comes to the same step, and has the doubt for it.
    life.hang = life.hang.judged(silence).new_attempt()
    life.set(step=silence.step - 1, beat_at=life.now)
    assert life.train(1, 0.1) is None and life.pass_time(evaluation, one)[1] is None
    for _ in range(2):
        assert life.train(2000, 0.1) is None and life.hang.doubt == 0.0
        assert life.pass_time(evaluation, one)[1] is None
    after, silence = life.pass_time(10 * limit, one)
    assert silence is not None and after < 4 * limit
