"""What is done about a verdict, row by row of the table, and the arithmetic of budget and backoff."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.model import Cause, Decision, Do, Ground, History, Policy, Verdict
from supervisor.core.policy import backoff, decide, learn
from supervisor.core.rules import (
    CHOICES,
    DEFAULTS,
    FIXED,
    HEALED,
    LEAST_WAIT,
    MARGIN,
    ROLLBACKS,
    Case,
    can,
    spent,
    table,
)

POLICY = Policy(max_restarts=3, window=100.0, no_progress_limit=3)


def verdict(cause: Cause = Cause.KILLED, step: int = 5, **fields: object) -> Verdict:
    return Verdict(cause, "because", 10.0, rank=0, step=step, **fields)  # type: ignore[arg-type]


def outcome(policy: Policy, what: Verdict, before: History, **learned: object) -> tuple[int | None, History]:
    """The exit code (None for a restart) and the history after."""
    values = {"stepped": True, "kept": before.best_step, **learned}
    after = learn(before, what, **values)  # type: ignore[arg-type]
    decision, history = decide(policy, what, before, after, Ground(newest=after.best_step), now=10.0, jitter=0.0)
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
    code, after = outcome(POLICY, verdict(), full, kept=60)
    assert (code, after.restarts, after.best_step) == (None, (10.0,), 60)


def test_no_progress_ends_with_105() -> None:
    """Attempts that leave no new checkpoint are counted, whatever the window forgets; a save at a step that
    nothing tells is not held against the run, and gives nothing back."""
    policy = replace(POLICY, max_restarts=100)
    history = History()
    codes = []
    for step in range(4):
        code, history = outcome(policy, verdict(step=step), history)
        codes.append(code)

    assert codes[:3] == [None, None, 105]
    assert outcome(policy, verdict(step=9), replace(history, barren=2), unplaced=True)[0] is None
    assert outcome(POLICY, verdict(), History(restarts=(8.0, 9.0, 9.5)), unplaced=True)[0] == 100


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
    """Nothing to wait for after progress; never more than the cap and a quarter; it never shrinks as failures
    repeat."""
    policy = Policy(backoff=(low, high))

    delay = backoff(policy, barren, jitter)

    assert 0.0 <= delay <= high * 1.25
    assert delay == 0.0 if barren <= 1 else delay > 0.0
    assert backoff(policy, barren, 0.0) <= backoff(policy, barren + 1, 0.0)


@given(st.lists(st.floats(0, 1000)), st.floats(0, 2000), st.floats(1, 500))
def test_spent_counts_the_window(times: list[float], now: float, window: float) -> None:
    """Exactly the restarts of the last `window` seconds are held against the run."""
    used = spent(History(restarts=tuple(times)), Policy(window=window), now)

    assert used == len([t for t in times if now - window < t])


causes = st.sampled_from(list(Cause))
overridable = st.sampled_from(list(DEFAULTS))
actions = st.dictionaries(overridable, st.sampled_from(CHOICES)).map(
    lambda chosen: {cause: do for cause, do in chosen.items() if can(cause, do)}
)
verdicts = st.builds(
    Verdict,
    cause=causes,
    reason=st.just("because"),
    at=st.just(10.0),
    step=st.integers(-1, 30),
    exit_code=st.sampled_from([None, 1, 75, 78]),
    frame=st.sampled_from(["", "train.py:9 f"]),
    bad_step=st.integers(-1, 31),
    data_step=st.integers(-1, 40),
)
grounds = st.builds(
    Ground, st.integers(0, 9), st.integers(-1, 30), st.sets(st.integers(0, 30), max_size=3).map(sorted).map(tuple)
)


def attempt(policy: Policy, history: History, what: Verdict, ground: Ground, stepped: bool) -> tuple[Decision, History]:
    """What follows from one more attempt that left the run on `ground`, in a test's ten seconds."""
    after = learn(history, what, stepped, ground.newest)
    return decide(policy, what, history, after, ground, now=10.0, jitter=0.0)


@given(actions, verdicts, grounds, st.booleans(), st.integers(0, 5), st.integers(0, 5))
def test_decide_is_total_and_is_the_table(
    chosen: dict[Cause, Do], what: Verdict, ground: Ground, stepped: bool, barren: int, rollbacks: int
) -> None:
    """Whatever came before, some rule matches, and what is decided is what that row of the shown table says."""
    policy = replace(POLICY, actions=chosen)
    history = History(barren=barren, rollbacks=rollbacks, bad_step=20, best_step=25, signature=what.signature)

    decision, after = attempt(policy, history, what, ground, stepped)

    learned = learn(history, what, stepped, ground.newest)
    case = Case(policy, what, history, learned, ground, 10.0)
    first = next(rule for rule in table(policy) if rule.matches(case))
    assert decision.do is first.do
    assert (decision.delay is None) == (first.exit_code is not None)
    assert decision.exit_code == (first.exit_code or 0)
    assert decision.counted == (len(after.restarts) > len(learned.restarts))
    if first.cause is not None:
        assert decision.do is chosen.get(what.cause, DEFAULTS[what.cause][0])


@given(actions, st.lists(st.tuples(verdicts, st.booleans()), min_size=40, max_size=40), grounds)
def test_no_progress_is_never_restarted_for_ever(
    chosen: dict[Cause, Do], failures: list[tuple[Verdict, bool]], ground: Ground
) -> None:
    """Attempts that leave nothing new end after a known number of them, whatever fails and whatever [policy] says."""
    policy, history = replace(POLICY, actions=chosen), History(best_step=ground.newest)
    for count, (what, stepped) in enumerate(failures, 1):
        decision, history = attempt(policy, history, what, replace(ground, attempt=count), stepped)
        if decision.delay is None:
            break

    assert decision.delay is None
    assert count <= POLICY.no_progress_limit + ROLLBACKS + 1


@given(overridable, st.sampled_from(CHOICES), verdicts, grounds, st.booleans())
def test_an_override_changes_its_cause_alone(
    cause: Cause, do: Do, what: Verdict, ground: Ground, stepped: bool
) -> None:
    """Every other cause is decided as before, and the table differs in one row."""
    if not can(cause, do):
        return
    policy = replace(POLICY, actions={cause: do})
    rows = {rule.when: (rule.do, rule.exit_code) for rule in table(POLICY)}
    changed = {rule.when: (rule.do, rule.exit_code) for rule in table(policy)}

    assert rows.keys() == changed.keys()
    assert {when for when in rows if rows[when] != changed[when]} <= {cause.value}
    if what.cause is not cause:
        assert attempt(policy, History(), what, ground, stepped) == attempt(POLICY, History(), what, ground, stepped)


def test_every_cause_is_in_the_table_once() -> None:
    """The table names every cause, ends and stops before it goes on, and has the exit codes of the contract."""
    rules = table(POLICY)

    named = [rule.cause for rule in rules if rule.cause]
    assert sorted(named, key=list(Cause).index) == [cause for cause in Cause if cause.value not in FIXED]
    assert {rule.exit_code for rule in rules} == {None, 0, 75, 100, 103, 104, 105}
    for a, b in itertools.pairwise([rule.exit_code is not None for rule in rules]):
        assert a or not b
    limits = " ".join(rule.when for rule in table(Policy(max_restarts=17, window=86.5, no_progress_limit=23)))
    assert all(text in limits for text in ("17 counted", "86.5 s", "23 attempts"))


def test_exit_78_is_never_restarted() -> None:
    """Whatever [policy] says about user errors: that code is the script's own word."""
    policy = replace(POLICY, actions={Cause.USER_ERROR: Do.RESTART, Cause.EXCEPTION: Do.UNCOUNTED})

    assert outcome(policy, verdict(Cause.USER_ERROR, exit_code=78), History())[0] == 104
    assert outcome(policy, verdict(Cause.USER_ERROR, exit_code=2), History())[0] is None


def test_stop_on_preempted_is_75() -> None:
    """A run that is to end where a rank asks to be started again is one for the queue, not a failure."""
    policy = replace(POLICY, actions={Cause.PREEMPTED: Do.STOP})
    decision, _ = attempt(policy, History(), verdict(Cause.PREEMPTED, exit_code=75), Ground(), True)

    assert (decision.exit_code, decision.state) == (75, "preempted")


def test_causes_that_time_cures_wait() -> None:
    """The first restart after a full disk waits, after a kill it does not. A port is free again after a minute: the
    tries that a run has without progress last that long."""
    full, _ = attempt(POLICY, History(), verdict(Cause.NO_SPACE), Ground(newest=5), True)
    killed, _ = attempt(POLICY, History(), verdict(), Ground(newest=5), True)
    barren, _ = attempt(POLICY, History(), verdict(Cause.NO_SPACE), Ground(), True)
    hasty, _ = attempt(replace(POLICY, backoff=(0.0, 1.0)), History(), verdict(Cause.NO_SPACE), Ground(), True)

    assert (full.delay, killed.delay, barren.delay, hasty.delay) == (1.0, 0.0, LEAST_WAIT, 1.0)
    assert backoff(POLICY, 2, -1.0, LEAST_WAIT) == LEAST_WAIT
    waits = [backoff(POLICY, barren + 1, 0.0, LEAST_WAIT) for barren in range(1, POLICY.no_progress_limit)]
    assert waits == [LEAST_WAIT, 2 * LEAST_WAIT]


def nan(step: int, data_step: int = -1) -> Verdict:
    """The loss after `step` finished steps was NaN."""
    return verdict(Cause.NAN, step=step, exit_code=1, data_step=data_step)


def test_rollback_goes_further_back_each_time_and_gives_up() -> None:
    """The newest state before the bad step, then an older checkpoint, then a still older one, then 104; always past all
    data that was bad, and at no cost to the budget."""
    policy, history, seen = replace(POLICY, max_restarts=1), History(), []
    grounds = [
        Ground(0, 20, (5, 10, 15)),
        Ground(1, 20, (5, 10, 15)),
        Ground(2, 15, (5, 10, 15)),
        Ground(3, 10, (5, 10)),
    ]
    for at, data, ground in zip((20, -1, -1, -1), (20, 23, 26, 29), grounds, strict=True):
        decision, history = attempt(policy, history, nan(at, data), ground, at >= 0)
        order = history.rollback
        seen.append((order.attempt, order.before, order.skip_to) if order and decision.delay is not None else None)

    assert seen == [(0, 21, 21 + MARGIN), (1, 16, 24 + MARGIN), (2, 11, 27 + MARGIN), None]
    assert decision.exit_code == 104
    assert history.restarts == ()


def test_a_bad_step_left_behind_counts_no_more() -> None:
    """A hundred steps past it, the next NaN is a first one."""
    _, history = attempt(POLICY, History(), nan(20), Ground(0, 20, (10, 20)), True)
    _, near = attempt(POLICY, history, nan(60), Ground(1, 60, (40, 50, 60)), True)
    _, far = attempt(POLICY, history, nan(21 + HEALED), Ground(1, 21 + HEALED, (100, 110)), True)

    assert (near.rollbacks, near.rollback and near.rollback.before) == (2, 51)
    assert (far.rollbacks, far.rollback and far.rollback.before) == (1, 22 + HEALED)


def test_a_spike_is_gone_back_from_before_it_began() -> None:
    """What the ranks say is the first bad step counts, not the one at which they said so."""
    spike = verdict(Cause.NAN, step=63, bad_step=60, data_step=63)
    _, history = attempt(POLICY, History(), spike, Ground(0, 63, (50, 60)), True)

    assert history.rollback is not None
    assert (history.rollback.before, history.rollback.skip_to) == (60, 64 + MARGIN)


def test_nothing_older_to_go_back_to() -> None:
    """The second time, a run whose only checkpoint is a suspect stops; one that never had any begins again."""
    _, history = attempt(POLICY, History(), nan(20), Ground(0, 20, (20,)), True)
    alone, _ = attempt(POLICY, history, nan(20), Ground(1, 20, (20,)), True)
    none, after = attempt(POLICY, history, nan(20), Ground(1, 20, ()), True)

    assert (alone.exit_code, alone.delay) == (104, None)
    assert none.delay == 0.0
    assert after.rollback is not None
    assert after.rollback.before == 20


def test_restart_older_keeps_what_is_to_be_skipped() -> None:
    """It goes back by one checkpoint, is counted, and forgets no data that an earlier rollback passes over."""
    _, history = attempt(POLICY, History(), nan(20), Ground(0, 20, (10, 20)), True)
    bad = verdict(Cause.CHECKPOINT_BAD, step=-1)
    decision, after = attempt(POLICY, history, bad, Ground(1, 20, (10, 20)), False)

    assert (decision.do, decision.counted) == (Do.OLDER, True)
    assert after.rollback is not None
    assert (after.rollback.attempt, after.rollback.before, after.rollback.skip_to) == (1, 11, 21 + MARGIN)


def test_what_an_attempt_cannot_take_back() -> None:
    """A checkpoint that is gone was there; a bad step stays bad, and data passed over stays so."""
    assert learn(History(best_step=40), verdict(), True, 20, 0).best_step == 40

    _, history = attempt(POLICY, History(), nan(50), Ground(0, 50, (10, 20, 30)), True)
    _, after = attempt(POLICY, history, nan(35, 35), Ground(1, 34, (10, 20, 30)), True)
    assert (history.bad_step, after.bad_step) == (51, 51)
    assert history.rollback and after.rollback
    assert after.rollback.skip_to == history.rollback.skip_to


def test_a_bad_state_is_no_failure_to_start() -> None:
    """It is gone back from, as often as that goes, with a limit of its own: it counts neither as a start nor as
    barren."""
    before = History(barren=2, best_step=20)
    for what in (nan(-1), verdict(Cause.CHECKPOINT_BAD, step=-1)):
        assert learn(before, what, False, 20, 0).startup_failures == 0
    assert learn(before, verdict(Cause.EXCEPTION, step=-1), False, 20, 0).startup_failures == 1
    decision, after = attempt(POLICY, before, nan(20), Ground(0, 20, (10, 20)), True)
    assert (decision.do, after.barren) == (Do.ROLLBACK, 2)
