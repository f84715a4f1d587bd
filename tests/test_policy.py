"""What is done about a verdict, row by row of the table, and the arithmetic of budget and backoff."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.model import Cause, History, Policy, Verdict
from supervisor.core.policy import RULES, backoff, decide, learn, spent

POLICY = Policy(max_restarts=3, window=100.0, no_progress_limit=3)


def verdict(cause: Cause = Cause.KILLED, step: int = 5, **fields: object) -> Verdict:
    return Verdict(cause, "because", 10.0, rank=0, step=step, **fields)  # type: ignore[arg-type]


def outcome(policy: Policy, what: Verdict, before: History, **learned: object) -> tuple[int | None, History]:
    """The exit code (None for a restart) and the history after."""
    values = {"stepped": True, "checkpoint_step": before.best_step, "saves": 0, **learned}
    after = learn(before, what, **values)  # type: ignore[arg-type]
    decision, history = decide(policy, what, before, after, now=10.0, jitter=0.0)
    return (None if decision.delay is not None else decision.exit_code), history


def test_ends_without_a_restart() -> None:
    """Finished, stopped and hopeless runs end at once with their own codes."""
    assert outcome(POLICY, verdict(Cause.FINISHED), History())[0] == 0
    assert outcome(POLICY, verdict(Cause.STOPPED_BY_USER), History())[0] == 103
    assert outcome(POLICY, verdict(Cause.USER_ERROR), History())[0] == 104


def test_budget_is_spent_in_the_window_and_given_back_by_progress() -> None:
    """max_restarts counted restarts, then 100; old ones leave the window; a new checkpoint clears them."""
    full = History(restarts=(8.0, 9.0, 9.5), best_step=40)

    assert outcome(POLICY, verdict(), full)[0] == 100
    assert outcome(replace(POLICY, window=1.0), verdict(), full)[0] is None
    code, after = outcome(POLICY, verdict(), full, checkpoint_step=60)
    assert (code, after.restarts, after.best_step) == (None, (10.0,), 60)


def test_no_progress_ends_with_105() -> None:
    """Attempts that leave no new checkpoint are counted, whatever the window forgets; the script's own saves count."""
    policy = replace(POLICY, max_restarts=100)
    history = History()
    codes = []
    for step in range(4):
        code, history = outcome(policy, verdict(step=step), history)
        codes.append(code)

    assert codes[:3] == [None, None, 105]
    assert outcome(policy, verdict(step=9), replace(history, barren=2), saves=1)[0] is None


def test_startup_failures_stop_when_they_repeat() -> None:
    """Two failures of its own before the first step: 104. Being killed twice before it proves nothing."""
    first = verdict(Cause.STARTUP_ERROR, step=-1, exit_code=1)
    code, history = outcome(POLICY, first, History(), stepped=False)
    again, _ = outcome(POLICY, replace(first, exit_code=3), history, stepped=False)
    killed, history = outcome(POLICY, verdict(signal=9, step=-1), History(), stepped=False)
    killed_again, _ = outcome(POLICY, verdict(signal=9, step=-1), history, stepped=False)

    assert (code, again) == (None, 104)
    assert (killed, killed_again) == (None, None)


def test_same_failure_twice_is_a_bug() -> None:
    """Same cause, frame, code and step twice in a row: 104; another step or frame in between: a restart."""
    bug = verdict(Cause.EXCEPTION, step=7, frame="train.py:9 f", exit_code=1)
    _, history = outcome(POLICY, bug, History())

    assert outcome(POLICY, bug, history)[0] == 104
    assert outcome(POLICY, replace(bug, step=8), history)[0] is None
    assert outcome(POLICY, replace(bug, frame="train.py:11 g"), history)[0] is None
    # A SIGKILL says nothing about the script.
    kill = verdict(Cause.KILLED, step=7, signal=9)
    assert outcome(POLICY, kill, outcome(POLICY, kill, History())[1])[0] is None


def test_exit_75_is_free_but_not_endless() -> None:
    """A script that asks to be started again costs no budget; without progress it still ends."""
    free = verdict(Cause.PREEMPTED, exit_code=75)
    spent_up = History(restarts=(8.0, 9.0, 9.5), best_step=40)
    code, after = outcome(POLICY, free, spent_up)

    assert (code, after.restarts) == (None, spent_up.restarts)
    assert outcome(POLICY, free, replace(spent_up, barren=2))[0] == 105


@given(st.integers(0, 200), st.floats(-1, 1), st.floats(0.1, 60), st.floats(60, 900))
def test_backoff_is_bounded(barren: int, jitter: float, low: float, high: float) -> None:
    """Nothing to wait for after progress; never more than the cap and a quarter; it never shrinks as failures repeat."""
    policy = Policy(backoff_min=low, backoff_max=high)

    delay = backoff(policy, barren, jitter)

    assert 0.0 <= delay <= high * 1.25
    assert delay == 0.0 if barren <= 1 else delay > 0.0
    assert backoff(policy, barren, 0.0) <= backoff(policy, barren + 1, 0.0)


@given(st.lists(st.floats(0, 1000)), st.floats(0, 2000), st.floats(1, 500))
def test_spent_counts_the_window(times: list[float], now: float, window: float) -> None:
    """Exactly the restarts of the last `window` seconds are held against the run."""
    used = spent(History(restarts=tuple(times)), Policy(window=window), now)

    assert used == len([t for t in times if now - window < t])


def test_rules_shown_are_rules_kept() -> None:
    """The table that `supervise policy` prints names every cause, and the exit codes that decide() gives."""
    said = " ".join(when for when, _, _ in RULES)

    assert [cause.value for cause in Cause if cause.value not in said] == []
    codes = {code for _, _, code in RULES if code is not None}
    assert codes == {0, 75, 100, 103, 104, 105}
    for a, b in itertools.pairwise([code is not None for _, _, code in RULES]):
        # Every rule that ends the run stands before those that go on.
        assert a or not b


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_has_a_decision(cause: Cause) -> None:
    """No cause falls through; what comes out is a restart or a documented exit code."""
    code, _ = outcome(POLICY, verdict(cause), History())

    assert code in (None, 0, 103, 104)
