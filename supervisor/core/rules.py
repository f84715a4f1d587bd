"""The rules about a verdict, as one table. The first match decides. A restart is the default; a stop needs a reason.

    ends                   finished, stopped, 78          nobody can override these
    causes that stop       user_error, and those in [policy]
    evidence               twice before the first step, the same failure twice, three rollbacks
    limits                 --max-restarts in --window, --no-progress-limit
    causes that go on      one row each: restart, restart-uncounted, restart-older, rollback

policy.decide() walks the table that `supervise policy` prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from supervisor.core.model import Cause, Do, Ground, History, Policy, Verdict
from supervisor.core.words import RunState
from trainer.rundir.codes import ExitCode

ROLLBACKS = 3
"""The number of rollbacks that may fail to get past the bad step, before the run is given up."""
HEALED = 100
"""The run has got past a bad step after this many more steps."""
MARGIN = 2
"""Steps of data after the bad one that a rollback also skips."""

FROM_OUTSIDE = frozenset(
    {Cause.KILLED, Cause.LAUNCHER_DIED, Cause.STOPPED, Cause.PREEMPTED, Cause.HANG, Cause.HOST_OOM, Cause.NODE_LOST}
    | {Cause.NO_SPACE, Cause.PORT_IN_USE, Cause.NCCL_OR_GLOO_TIMEOUT, Cause.GPU_LOST, Cause.GPU_BUSY}
)
"""Causes that prove nothing about the script. The same one twice at one step does not show a bug."""
OF_THE_STATE = frozenset({Cause.NAN, Cause.CHECKPOINT_BAD})
"""Causes in the state from which the attempt began, not in the script's start."""
CURED_BY_TIME = frozenset({Cause.NO_SPACE, Cause.PORT_IN_USE, Cause.HOST_OOM, Cause.GPU_BUSY})
"""Causes after which even the first restart waits."""
LEAST_WAIT = 15.0
"""Seconds that such a wait lasts at least after an attempt without progress, unless the longest one is shorter
(--backoff). A port is free again after a minute, and nobody makes room on a disk in a second."""
_WAITS = f"after a wait: without progress {LEAST_WAIT:.0f} s, then twice as long"

DEFAULTS: Mapping[Cause, tuple[Do, str]] = {
    Cause.USER_ERROR: (Do.STOP, "it does not compile, or an import or an argument is missing"),
    Cause.STARTUP_ERROR: (Do.RESTART, "a mount or a peer that was late; twice in a row is evidence (above)"),
    Cause.EXCEPTION: (Do.RESTART, "most are passing; the same one at the same step is evidence (above)"),
    Cause.KILLED: (Do.RESTART, "somebody else's doing"),
    Cause.SEGFAULT: (Do.RESTART, "drivers and memory fail now and then; twice at one step is a bug (above)"),
    Cause.ABORT: (Do.RESTART, "as a segfault"),
    Cause.HOST_OOM: (Do.RESTART, f"a neighbour's memory, or a leak that a fresh process is rid of; {_WAITS}"),
    Cause.CUDA_OOM: (Do.RESTART, "fragments and leftovers go with the process; twice at one step is a bug (above)"),
    Cause.GPU_ASSERT: (Do.RESTART, "an index out of range, as a rule; twice at one step is a bug (above)"),
    Cause.GPU_FAULT: (Do.RESTART, "the context is lost with the process; twice at one step is a bug (above)"),
    Cause.GPU_LOST: (Do.STOP, "the device needs a reset or is gone; shrink goes on without it"),
    Cause.GPU_BUSY: (Do.UNCOUNTED, f"a dead process still holds the device; {_WAITS}"),
    Cause.NCCL_ERROR: (Do.RESTART, "a network, or a peer on another machine; twice before the first step is evidence"),
    Cause.NCCL_OR_GLOO_TIMEOUT: (Do.RESTART, "a victim's word: it says nothing about who was late"),
    Cause.HANG: (Do.RESTART, "the stacks are kept; a fresh rendezvous cures most"),
    Cause.STOPPED: (Do.RESTART, "a signal from outside"),
    Cause.NAN: (Do.ROLLBACK, "the same state and the same data give the same NaN: go back, and past that data"),
    Cause.NO_SPACE: (Do.RESTART, f"room may be made; {_WAITS}, or the disk fills a log with failures"),
    Cause.CHECKPOINT_BAD: (Do.OLDER, "the same checkpoint would fail the same way"),
    Cause.REPLICAS_DIFFER: (Do.RESTART, "nothing was kept from after the step where all ranks were the same"),
    Cause.PORT_IN_USE: (Do.UNCOUNTED, f"a race for a port, which the next attempt draws anew; {_WAITS}"),
    Cause.PREEMPTED: (Do.UNCOUNTED, "exit code 75 of a rank: it has saved and asks to be started again"),
    Cause.LAUNCHER_DIED: (Do.RESTART, "torchrun's trouble, not the script's"),
    Cause.NODE_LOST: (Do.UNCOUNTED, "the machine's trouble; the others, or a spare, go on at once"),
    Cause.STARTED_OVER: (Do.GO_ON, "a warning names the save that it did not load, and where that is kept"),
}
"""The default action, with its reason, for each cause that a person may decide."""

FIXED: Mapping[str, str] = {
    Cause.FINISHED.value: "a run that has finished is over",
    Cause.STOPPED_BY_USER.value: "a run that was asked to stop is over",
    "budget": "set --max-restarts and --window instead",
    "no_progress": "set --no-progress-limit instead",
}
"""Causes whose action cannot be changed, with the reason, or with another way."""

CHOICES = (Do.RESTART, Do.UNCOUNTED, Do.OLDER, Do.ROLLBACK, Do.SHRINK, Do.GO_ON, Do.STOP)
"""The actions that may replace a default."""


def can(cause: Cause, do: Do) -> bool:
    """Whether `do` makes sense for `cause`: only a failure in a step has data that can be skipped, only a start from 0
    is no failure, and only a lost GPU can be done without."""
    if do is Do.SHRINK:
        return cause is Cause.GPU_LOST
    if Cause.STARTED_OVER is cause or do is Do.GO_ON:
        return cause is Cause.STARTED_OVER and do in (Do.GO_ON, Do.STOP)
    return do is not Do.ROLLBACK or cause in (Cause.NAN, Cause.EXCEPTION)


@dataclass(frozen=True, slots=True)
class Case:
    """The input of a rule. `before` and `after` are the history without and with the attempt that is over."""

    policy: Policy
    verdict: Verdict
    before: History
    after: History
    ground: Ground
    now: float

    @property
    def do(self) -> Do:
        return action(self.policy, self.verdict.cause)

    @property
    def goes_again(self) -> bool:
        """Whether the next attempt would do exactly the same as this one."""
        return self.do in (Do.RESTART, Do.UNCOUNTED)

    @property
    def goes_back(self) -> bool:
        return self.do in (Do.OLDER, Do.ROLLBACK)

    @property
    def counted(self) -> bool:
        return self.do in (Do.RESTART, Do.OLDER, Do.SHRINK)

    @property
    def again(self) -> bool:
        """Whether a rollback has not helped."""
        return self.do is Do.ROLLBACK and self.after.rollbacks > 0

    @property
    def older(self) -> int | None:
        """The newest checkpoint older than the newest state."""
        return max((step for step in self.ground.checkpoints if step < self.ground.newest), default=None)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row. `say` is the sentence of the decision; the verdict's sentence follows it after a colon."""

    when: str
    do: Do
    why: str
    matches: Callable[[Case], bool]
    exit_code: ExitCode | None = None
    state: RunState = RunState.FAILED
    say: Callable[[Case], str] = lambda case: ""
    cause: Cause | None = None
    """The cause of this row, if it has one: [policy] can change the row."""


def action(policy: Policy, cause: Cause) -> Do:
    """The action for `cause`, unless evidence or a limit forbids it."""
    return policy.actions.get(cause) or DEFAULTS.get(cause, (Do.END, ""))[0]


def table(policy: Policy) -> tuple[Rule, ...]:
    """The rules in force, in their order."""
    return (*_ends(), *_stops(policy), *_evidence(), *_limits(policy), *_restarts(policy))


def _ends() -> Iterator[Rule]:
    def of(cause: Cause) -> Callable[[Case], bool]:
        return lambda case: case.verdict.cause is cause

    yield Rule(
        "finished: every rank exited with 0", Do.END, "done", of(Cause.FINISHED), ExitCode.FINISHED, RunState.FINISHED
    )
    asked = "stopped_by_user: a person asked to stop"
    yield Rule(
        asked, Do.END, "as asked, after a checkpoint", of(Cause.STOPPED_BY_USER), ExitCode.STOPPED, RunState.STOPPED
    )
    yield Rule(
        "preempted: a signal asked the supervisor to stop",
        Do.END,
        "safe to launch again",
        lambda case: case.verdict.cause is Cause.PREEMPTED and case.verdict.exit_code is None,
        ExitCode.PREEMPTED,
        RunState.PREEMPTED,
    )
    yield Rule(
        "exit code 78 of a rank",
        Do.STOP,
        "it says that no restart can help",
        lambda case: case.verdict.exit_code == ExitCode.NEVER_RESTART,
        ExitCode.POINTLESS,
        say=lambda case: "not worth a restart",
    )


def _stops(policy: Policy) -> Iterator[Rule]:
    for cause in DEFAULTS:
        if action(policy, cause) is Do.STOP:
            yield _row(policy, cause)


def _restarts(policy: Policy) -> Iterator[Rule]:
    for cause in DEFAULTS:
        if action(policy, cause) is not Do.STOP:
            yield _row(policy, cause)


def _row(policy: Policy, cause: Cause) -> Rule:
    default, why = DEFAULTS[cause]
    do = action(policy, cause)
    ends = {Cause.PREEMPTED: (ExitCode.PREEMPTED, RunState.PREEMPTED)}.get(cause, (ExitCode.POINTLESS, RunState.FAILED))
    return Rule(
        when=cause.value,
        do=do,
        why=why if do is default else f"as asked for in [policy]; by default {default.value}",
        matches=lambda case: case.verdict.cause is cause,
        exit_code=ends[0] if do is Do.STOP else None,
        state=ends[1],
        say=lambda case: "not worth a restart" if do is default else f"{cause.value} is to stop the run",
        cause=cause,
    )


def _evidence() -> Iterator[Rule]:
    yield Rule(
        "two failures of its own in a row before the first step",
        Do.STOP,
        "it cannot start",
        lambda case: case.goes_again and case.after.startup_failures >= 2,
        ExitCode.POINTLESS,
        say=lambda case: "failed twice before the first step",
    )
    yield Rule(
        "the same cause, frame, exit code and step twice in a row, not from outside",
        Do.STOP,
        "a deterministic bug",
        _same_failure,
        ExitCode.POINTLESS,
        say=lambda case: "the same failure twice in a row",
    )
    yield Rule(
        f"{ROLLBACKS} times back to an older state, and never {HEALED} steps past the bad one",
        Do.STOP,
        "going back does not cure it",
        lambda case: case.goes_back and case.after.rollbacks >= ROLLBACKS,
        ExitCode.POINTLESS,
        say=lambda case: f"gone back {case.after.rollbacks} times and failed again",
    )
    yield Rule(
        "to be rolled back again, and no checkpoint is old enough",
        Do.STOP,
        "every state that is left is a suspect",
        lambda case: case.again and bool(case.ground.checkpoints) and case.older is None,
        ExitCode.POINTLESS,
        say=lambda case: "no checkpoint from before it went bad is left",
    )


def _same_failure(case: Case) -> bool:
    known = case.verdict.step >= 0 and case.verdict.cause not in FROM_OUTSIDE
    return known and case.goes_again and case.before.signature == case.verdict.signature


def _limits(policy: Policy) -> Iterator[Rule]:
    yield Rule(
        f"{policy.max_restarts} counted restarts within {policy.window:g} s since the last new checkpoint "
        "(--max-restarts)",
        Do.STOP,
        "the budget is used up",
        lambda case: case.counted and spent(case.after, case.policy, case.now) >= case.policy.max_restarts,
        ExitCode.BUDGET,
        say=lambda case: (
            f"restart budget used up ({spent(case.after, case.policy, case.now)} of {case.policy.max_restarts})"
        ),
    )
    yield Rule(
        f"{policy.no_progress_limit} attempts in a row without a new checkpoint (--no-progress-limit)",
        Do.STOP,
        "no progress; restarts that are not counted end here too",
        lambda case: case.do is not Do.ROLLBACK and case.after.barren >= case.policy.no_progress_limit,
        ExitCode.NO_PROGRESS,
        say=lambda case: f"{case.after.barren} attempts in a row left no new checkpoint",
    )


def spent(history: History, policy: Policy, now: float) -> int:
    """The number of counted restarts in the window."""
    return sum(1 for at in history.restarts if at > now - policy.window)
