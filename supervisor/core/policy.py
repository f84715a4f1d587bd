"""The decision after a verdict, by the first rule that matches, and the history after an attempt."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core.model import Decision, Do, Ground, History, Policy, Rollback, Verdict
from supervisor.core.rules import (
    CURED_BY_TIME,
    FROM_OUTSIDE,
    HEALED,
    LEAST_WAIT,
    MARGIN,
    OF_THE_STATE,
    ROLLBACKS,
    Case,
    spent,
    table,
)


def learn(history: History, verdict: Verdict, stepped: bool, kept: int, unplaced: bool = False) -> History:
    """`history` with the attempt that just ended. `kept` is the newest step that a restart can go on from, in a
    checkpoint of ours or of the script. If it is new, the counts against the run are cleared. `unplaced`: the script
    has saved an unknown step, which proves neither progress nor its absence."""
    progressed = kept > history.best_step
    startup = not stepped and verdict.cause not in FROM_OUTSIDE | OF_THE_STATE
    healed = kept >= history.bad_step + HEALED
    return replace(
        history,
        restarts=() if progressed else history.restarts,
        barren=0 if progressed or unplaced else history.barren + 1,
        startup_failures=history.startup_failures + 1 if startup else 0,
        best_step=max(history.best_step, kept),
        signature=verdict.signature,
        rollbacks=0 if healed else history.rollbacks,
    )


def decide(
    policy: Policy, verdict: Verdict, before: History, after: History, ground: Ground, now: float, jitter: float
) -> tuple[Decision, History]:
    """The decision of the first rule that matches, and the history with it. `jitter` is a random number in [-1, 1]."""
    case = Case(policy, verdict, before, after, ground, now)
    rule = next(rule for rule in table(policy) if rule.matches(case))
    if rule.exit_code is not None:
        reason = ": ".join(part for part in (rule.say(case), verdict.reason) if part)
        return Decision(reason, exit_code=rule.exit_code, state=rule.state, do=rule.do), after
    if rule.do is Do.ROLLBACK:
        said = f"rollback {after.rollbacks + 1} of {ROLLBACKS}"
        # A rollback cannot get ahead of the best checkpoint at once, and it has its own limit.
        return Decision(said, delay=0.0, do=rule.do), replace(_went_back(case), barren=before.barren)
    if verdict.cause in CURED_BY_TIME:
        # After progress a short wait is enough: if it is not, the next attempt makes none.
        delay = backoff(policy, max(after.barren, 1) + 1, jitter, LEAST_WAIT if after.barren else 0.0)
    else:
        delay = backoff(policy, after.barren, jitter)
    said = (
        f"restart {spent(after, policy, now) + 1} of {policy.max_restarts}" if case.counted else "restart, not counted"
    )
    if rule.do is Do.OLDER:
        after = _went_back(case)
        if after.rollback is not None and after.rollback != before.rollback:
            said += f", from before step {after.rollback.before}"
    if case.counted:
        after = replace(after, restarts=(*after.restarts, now))
    return Decision(said, delay=delay, do=rule.do, counted=case.counted), after


def _went_back(case: Case) -> History:
    """The history with an order to go back. The first time it goes to the newest state before the bad step. That state
    may be bad too. So the next time it goes to a checkpoint older than the newest state, since snapshots are suspect
    too."""
    verdict, ground, after = case.verdict, case.ground, case.after
    done = verdict.step if verdict.step >= 0 else max(ground.newest, 0)
    bad = verdict.bad_step if verdict.bad_step >= 0 else done + 1
    after = replace(after, rollbacks=after.rollbacks + 1, bad_step=max(bad, after.bad_step))
    if case.do is Do.ROLLBACK and not case.again:
        before = bad
    elif case.older is not None:
        before = case.older + 1
    elif ground.checkpoints:
        return after
    else:
        # No known checkpoint on disk: go back before the state that it failed with, in memory or in a save of the
        # script.
        before = max(ground.newest, 1) if ground.newest >= 0 else bad
    skip_to = after.rollback.skip_to if after.rollback else 0
    if case.do is Do.ROLLBACK:
        skip_to = max(skip_to, (verdict.data_step if verdict.data_step >= 0 else done) + 1 + MARGIN)
    return replace(after, rollback=Rollback(ground.attempt, before, skip_to))


def backoff(policy: Policy, barren: int, jitter: float, least: float = 0.0) -> float:
    """Seconds to wait. There is no wait after progress or for the first barren attempt. Then the wait doubles up to a
    cap, plus or minus a quarter. It begins at `least` or above, if the cap allows that.

    Waiting helps if time cures the cause (a full disk, a driver that recovers). After a killed rank no wait is needed.
    """
    if barren <= 1:
        return 0.0
    shortest, longest = policy.backoff
    raw = max(shortest, least) * 2.0 ** min(barren - 2, 32)
    return max(min(least, longest), float(min(raw, longest) * (1.0 + 0.25 * jitter)))
