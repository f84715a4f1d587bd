"""The hang rule: the dead are found in time, the slow are left alone, and neither a pause nor a crowd makes a hang."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.core.hangs.hang import LONGEST_SLEEP, STOPPED_FOR
from supervisor.core.hangs.limits import (
    BUSY,
    BUSY_UNTOLD,
    DISK_LIMIT,
    HELD,
    IDLE,
    IDLE_UNTOLD,
    POLLS,
)
from supervisor.core.hangs.timings import Pace
from supervisor.core.model import Policy
from tests.support.silence import (
    AUTO,
    TICK,
    trained,
)
from trainer.rundir.codes import Phase


@pytest.mark.parametrize("usual", [0.02, 0.1, 0.9])
def test_deadlock_is_found_within_two_seconds_of_rest(usual: float) -> None:
    """However long the steps: when no rank can go on without another, the limit is short: it is the cost of a
    mistake."""
    life = trained(usual, ranks=2)
    life.set(held="futex 7")

    after, silence = life.pass_time(60.0)

    assert silence is not None and silence.kind == "held"
    assert HELD[1] <= after <= HELD[1] + 3 * TICK


def test_a_wait_that_changes_is_no_deadlock() -> None:
    """Threads that hand work to each other wait in ever new places: other evidence has to tell."""
    life = trained(ranks=2)
    for number in range(10):
        life.set(held=f"futex {number}")
        assert life.pass_time(0.6 * HELD[1])[1] is None or number * 0.6 * HELD[1] >= IDLE[1] - TICK


def test_held_ranks_wait_for_one_that_works() -> None:
    """A rank that uses the CPU may still free the others: it has its own time, and is the one that is blamed in the
    end."""
    life = trained(ranks=3)
    for rank in (0, 2):
        life.set(rank, held="futex 7")

    after, silence = life.pass_time(600.0, busy=frozenset({1}))

    assert silence is not None and (silence.rank, silence.kind) == (1, "busy")
    assert BUSY[1] - TICK <= after <= BUSY[2] + 3 * TICK


def test_save_of_one_rank_is_waited_for() -> None:
    """While rank 0 saves, rank 1 waits at a barrier: not for longer than the save may take, and it is not blamed."""
    life = trained(ranks=2)
    life.set(0, phase=Phase.SAVE, beat_at=life.now)
    life.set(1, held="futex 7")
    assert life.pass_time(1500.0)[1] is None

    _, silence = life.pass_time(400.0)

    assert silence is not None and (silence.rank, silence.phase) == (0, Phase.SAVE)


def test_rank_that_nobody_waits_for_is_found_alone() -> None:
    """Ranks that do not wait for each other: one goes on, the other is found by its own silence."""
    life = trained(ranks=2)
    found = None
    for _ in range(600):
        if found := life.pass_time(0.2, busy=frozenset({0}))[1]:
            break
        life.set(0, step=life.views[0].step + 1, beat_at=life.now)

    assert found is not None and (found.rank, found.kind) == (1, "idle")


@pytest.mark.parametrize(("announces", "rule"), [(True, IDLE), (False, IDLE_UNTOLD)])
def test_idle_silence(announces: bool, rule: tuple[float, float, float]) -> None:
    """No CPU used, but something may answer: the floor where a restart is cheap, longer where it is not."""
    life = trained(announces=announces)
    after, silence = life.pass_time(300.0)
    assert silence is not None and silence.kind == "idle"
    assert rule[1] - TICK <= after <= rule[1] + 4 * TICK

    dear = trained(announces=announces, pace=Pace(restart=50.0))
    dear.hang = replace(dear.hang, pace=replace(dear.hang.pace, restart=50.0))
    after, silence = dear.pass_time(300.0)
    assert silence is not None and 50.0 - TICK <= after <= 50.0 + 4 * TICK


@pytest.mark.parametrize(("announces", "rule"), [(True, BUSY), (False, BUSY_UNTOLD)])
def test_busy_silence(announces: bool, rule: tuple[float, float, float]) -> None:
    """An endless loop is found; a script that says nothing may be evaluating, and has the long limit."""
    life = trained(announces=announces)

    after, silence = life.pass_time(2 * rule[2], busy=frozenset({0}))

    assert silence is not None and silence.kind == "busy"
    assert rule[1] - TICK <= after <= rule[2] + 4 * TICK


@pytest.mark.parametrize("seconds", [0.21, 0.29, 0.296875, 0.39])
def test_a_step_is_as_long_as_its_beats_say(seconds: float) -> None:
    """Not as long as the time since a look, which may be shorter by the time between two looks."""
    recent = trained(seconds, announces=True).hang.pace.recent
    assert len(recent) >= 8 and recent == pytest.approx([seconds] * len(recent))


@settings(max_examples=60, deadline=None)
@given(
    usual=st.floats(0.02, 3.0),
    slow=st.lists(st.tuples(st.floats(1.0, 20.0), st.booleans()), min_size=1, max_size=12),
    announces=st.booleans(),
    ranks=st.integers(1, 3),
)
def test_slow_steps_are_no_hang(usual: float, slow: list[tuple[float, bool]], announces: bool, ranks: int) -> None:
    """Steps up to twenty times as long as usual, idle or busy, never get a verdict, in whatever order they come."""
    life = trained(usual, announces=announces, ranks=ranks)

    for factor, busy in slow:
        assert life.train(1, usual * factor, busy) is None
        assert life.train(3, usual) is None


@settings(max_examples=60, deadline=None)
@given(
    usual=st.floats(0.02, 3.0),
    slow=st.lists(st.floats(1.0, 20.0), max_size=12),
    busy=st.booleans(),
    announces=st.booleans(),
)
def test_the_dead_are_found(usual: float, slow: list[float], busy: bool, announces: bool) -> None:
    """Whatever was seen before: a rank that never comes back has a verdict, within what the rule says."""
    life = trained(usual, announces=announces)
    for factor in slow:
        assert life.train(1, usual * factor) is None
        assert life.train(2, usual) is None
    floor = (BUSY if announces else BUSY_UNTOLD)[2]

    after, silence = life.pass_time(4000.0, busy=frozenset({0} if busy else ()))

    assert silence is not None
    assert after <= max(floor, 25.0 * max(usual, TICK) * 20.0, 3.0 * 21.0 * usual) + 1.0


@settings(max_examples=60, deadline=None)
@given(pauses=st.lists(st.floats(0.6, 4000.0), min_size=1, max_size=6), held=st.booleans())
def test_pause_of_the_machine_is_forgiven(pauses: list[float], held: bool) -> None:
    """After a suspend every beat is old, and the ranks need a moment; nothing is learned from it either."""
    life = trained(ranks=2)
    for pause in pauses:
        life.set(held="futex 7" if held else "")
        life.now += pause
        assert life.look() is None
        assert life.pass_time(0.4)[1] is None
        assert life.train(1, 0.1) is None
    life.set(held="")

    # It does not hide the dead.
    after, silence = life.pass_time(60.0)
    assert silence is not None and after <= IDLE[1] + 1.0


def test_crowded_machine_is_forgiven() -> None:
    """A rank that is ready to run and gets no CPU is not silent."""
    life = trained()
    for _ in range(500):
        life.set(starved=life.views[0].starved + 0.19, cpu=life.views[0].cpu + 0.01)
        assert life.pass_time(0.2)[1] is None


def test_disk_has_its_own_limit() -> None:
    """State D: a loaded disk takes long, and a kill would not end the wait; yet it is not for ever."""
    life = trained()
    life.set(disk=True)

    after, silence = life.pass_time(1000.0)

    assert silence is not None and DISK_LIMIT - TICK <= after <= DISK_LIMIT + 4 * TICK


def test_wrong_verdict_is_not_repeated() -> None:
    """A step that is slow every time gets through: after a verdict the same silence may last three times as long."""
    life = trained()
    killed_at = life.views[0].step
    limits = []
    for _ in range(3):
        after, silence = life.pass_time(600.0)
        assert silence is not None
        limits.append(after)
        life.hang = life.hang.judged(silence).new_attempt()
        life.set(step=killed_at, phase=Phase.TRAIN, beat_at=life.now)
        assert life.train(0, 0.1) is None
    assert limits[1] >= 2.5 * limits[0] and limits[2] >= 2.5 * limits[1]

    # Once the step is past, it is forgotten.
    assert life.train(10, 0.1) is None
    after, silence = life.pass_time(600.0)
    assert silence is not None and after <= 2 * limits[0]


def test_stopped_rank_is_seen_at_once() -> None:
    """State T is evidence by itself, also after a pause."""
    life = trained(ranks=2)
    life.set(1, stopped=True)

    after, silence = life.pass_time(10.0)

    assert silence is not None and (silence.rank, silence.stopped) == (1, True)
    assert STOPPED_FOR <= after <= 0.85


def test_ranks_that_look_again_and_again() -> None:
    """All of them sleep and look, for a file that nobody of this run will remove: 8 s, or more if a restart is dear."""
    life = trained(announces=False, ranks=2)
    life.set(polls=True)
    after, silence = life.pass_time(100.0)
    assert silence is not None and silence.kind == "polls" and POLLS[1] - TICK <= after <= POLLS[1] + 4 * TICK

    # One that does anything else has its own time, and the others wait for it.
    life = trained(announces=False, ranks=2)
    life.set(0, polls=True)
    assert life.pass_time(IDLE_UNTOLD[1] - 1.0)[1] is None


def test_ranks_that_look_again_and_again_on_a_crowded_machine() -> None:
    """Each look waits for a CPU, and hardly uses it. That is no work: only the wait does not count."""
    life = trained(announces=False, ranks=2)
    life.set(polls=True)
    began, silence = life.now, None
    while silence is None and life.now < began + 200.0:
        for rank in range(2):
            life.set(rank, cpu=life.views[rank].cpu + 0.002, starved=life.views[rank].starved + TICK / 2)
        silence = life.pass_time(TICK)[1]
    assert silence is not None and silence.kind == "polls"
    assert 2 * POLLS[1] - 2 * TICK <= life.now - began <= 2 * POLLS[1] + 1.0


def test_another_program_is_not_judged_by_our_beats() -> None:
    """A rank that has become another program (exec) is silent for ever; only a stopped one is seen. Nor are those
    blamed who wait for it."""
    for policy in (AUTO, Policy(hang_timeout=5.0)):
        life = trained(policy=policy, ranks=2)
        life.set(1, replaced=True)
        life.set(0, held="futex 7")
        if policy is AUTO:
            assert life.pass_time(5000.0)[1] is None
        life.set(1, stopped=True)
        _, silence = life.pass_time(2.0)
        assert silence is not None and (silence.rank, silence.stopped) == (1, True)


def test_growing_logs_are_life() -> None:
    """Of a script that says nothing."""
    life = trained(announces=False)
    for _ in range(40):
        assert life.pass_time(20.0)[1] is None
        life.log_grew_at = life.now


def test_off_is_off_and_a_duration_is_kept() -> None:
    """`off` never fires, in no phase; a duration holds for every rank in training, whatever the evidence."""
    off = trained(policy=Policy(hang_timeout=float("inf")))
    off.set(held="futex 7", stopped=True)
    assert off.pass_time(2000.0)[1] is None

    fixed = trained(policy=Policy(hang_timeout=20.0))
    fixed.set(held="futex 7")
    after, silence = fixed.pass_time(60.0)
    assert silence is not None and 19.9 <= after <= 20.5


def test_a_sleep_that_ends_by_itself_is_no_hang() -> None:
    """A rank that sleeps for minutes, while the others wait for it, is left alone; a loop of such sleeps is found."""
    life = trained(announces=False, ranks=2)
    life.set(0, sleeps=True)
    assert life.pass_time(LONGEST_SLEEP - 1.0)[1] is None
    after, silence = life.pass_time(2 * LONGEST_SLEEP)
    assert silence is not None and silence.rank == 0 and silence.kind == "idle"
    assert 0.0 < after < 2 * IDLE_UNTOLD[2]
    # But a limit that somebody has given is one.
    life = trained(policy=Policy(hang_timeout=30.0), ranks=2)
    life.set(0, sleeps=True)
    assert 30.0 <= life.pass_time(60.0)[0] <= 31.0
