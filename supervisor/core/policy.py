"""What we do about a verdict: a table of rules, first match wins. To restart is the default; a stop must be earned."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core.model import Cause, Decision, History, Policy, Verdict

FINISHED, PREEMPTED, BUDGET, STOPPED, POINTLESS, NO_PROGRESS, STUCK = 0, 75, 100, 103, 104, 105, 106

FROM_OUTSIDE = frozenset({Cause.KILLED, Cause.LAUNCHER_DIED, Cause.STOPPED, Cause.PREEMPTED, Cause.HANG})
"""Causes that say nothing about the script: the same one twice at one step is no proof of a bug in it."""

RULES: tuple[tuple[str, str, int | None], ...] = (
    ("every rank exited with 0 (finished)", "end", FINISHED),
    ("a person asked to stop (stopped_by_user)", "end", STOPPED),
    ("a signal asked to stop (preempted)", "end", PREEMPTED),
    ("exit code 78, or SyntaxError or ImportError before the first step (user_error)", "stop", POINTLESS),
    ("two failures of its own in a row before the first step (startup_error)", "stop", POINTLESS),
    ("the same cause, frame, exit code and step twice in a row, not from outside", "stop", POINTLESS),
    ("--max-restarts counted restarts in --window since the last new checkpoint", "stop", BUDGET),
    ("--no-progress-limit attempts in a row without a new checkpoint", "stop", NO_PROGRESS),
    ("exit code 75 (preempted)", "restart, not counted", None),
    ("anything else: exception, killed, segfault, abort, hang, stopped, launcher_died", "restart", None),
)
"""What decide() does, in its order, for people. tests/test_policy.py holds the two against each other."""


def learn(history: History, verdict: Verdict, stepped: bool, checkpoint_step: int, saves: int) -> History:
    """`history` with the attempt that just ended; a new durable checkpoint clears what counts against the run."""
    progressed = checkpoint_step > history.best_step
    own_saves = saves > 0
    startup = not stepped and verdict.cause not in FROM_OUTSIDE
    return replace(
        history,
        restarts=() if progressed else history.restarts,
        barren=0 if progressed or own_saves else history.barren + 1,
        startup_failures=history.startup_failures + 1 if startup else 0,
        best_step=max(history.best_step, checkpoint_step),
        signature=verdict.signature,
    )


def spent(history: History, policy: Policy, now: float) -> int:
    """Counted restarts that lie in the window."""
    return sum(1 for at in history.restarts if at > now - policy.window)


def decide(
    policy: Policy, verdict: Verdict, before: History, after: History, now: float, jitter: float
) -> tuple[Decision, History]:
    """The decision, and the history with it. `before` and `after` are the history without and with this attempt;
    `jitter` is a random number in [-1, 1]."""
    match verdict.cause:
        case Cause.FINISHED:
            return Decision(verdict.reason, exit_code=FINISHED, state="finished"), after
        case Cause.STOPPED_BY_USER:
            return Decision(verdict.reason, exit_code=STOPPED, state="stopped"), after
        case Cause.USER_ERROR:
            return _stop(POINTLESS, f"not worth a restart: {verdict.reason}"), after
        case _:
            pass
    if after.startup_failures >= 2:
        return _stop(POINTLESS, f"failed twice before the first step: {verdict.reason}"), after
    if verdict.step >= 0 and verdict.cause not in FROM_OUTSIDE and before.signature == verdict.signature:
        return _stop(POINTLESS, f"the same failure twice in a row: {verdict.reason}"), after
    counted = verdict.cause is not Cause.PREEMPTED
    used = spent(after, policy, now)
    if counted and used >= policy.max_restarts:
        return _stop(BUDGET, f"restart budget used up ({used} of {policy.max_restarts}): {verdict.reason}"), after
    if after.barren >= policy.no_progress_limit:
        said = f"{after.barren} attempts in a row left no new checkpoint"
        return _stop(NO_PROGRESS, f"{said}: {verdict.reason}"), after
    delay = backoff(policy, after.barren, jitter)
    said = f"restart {used + 1} of {policy.max_restarts}" if counted else "restart, not counted"
    return Decision(said, delay=delay), replace(after, restarts=(*after.restarts, now)) if counted else after


def _stop(exit_code: int, reason: str) -> Decision:
    return Decision(reason, exit_code=exit_code, state="failed")


def backoff(policy: Policy, barren: int, jitter: float) -> float:
    """Seconds to wait: none after progress or for the first barren attempt, then doubling, capped, give or take a quarter.

    The wait is for what time cures (a full disk, a driver that recovers); a rank that was killed needs none.
    """
    if barren <= 1:
        return 0.0
    raw = policy.backoff_min * 2.0 ** min(barren - 2, 32)
    return float(min(raw, policy.backoff_max) * (1.0 + 0.25 * jitter))
