"""What happened: from exits, exceptions and silence to one verdict that names the first failure, not its victims."""

from __future__ import annotations

from supervisor.core.model import Cause, Exit, Observation, Raised, Verdict

NEVER_RESTART = 78
PREEMPTED = 75
_KILLERS = {9: "SIGKILL", 15: "SIGTERM", 2: "SIGINT", 1: "SIGHUP"}
_CRASHES = {11: (Cause.SEGFAULT, "SIGSEGV"), 7: (Cause.SEGFAULT, "SIGBUS"), 6: (Cause.ABORT, "SIGABRT")}
_CRASHES |= {4: (Cause.ABORT, "SIGILL"), 8: (Cause.ABORT, "SIGFPE")}

USER_ERRORS = frozenset({"SyntaxError", "IndentationError", "TabError", "ImportError", "ModuleNotFoundError"})
"""Exceptions that a second start cannot cure."""

NOT_FINITE = frozenset({"NotFinite", "LossSpike"})
"""Exceptions of trainer.errors about a loss that no further step can mend."""

# What a rank says when a peer has gone. Such a rank is never the first cause while another one failed too.
_COLLATERAL = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket timeout",
    "nccl communicator was aborted",
    "watchdog caught collective operation timeout",
    "[/pytorch/third_party/gloo",
)


LAST_WORDS = 0.25
"""Seconds that a rank which has raised gets to print its traceback and leave by itself."""
SETTLE = 0.5
"""Seconds that a victim's failure waits for its cause to show itself."""


def is_collateral(raised: Raised) -> bool:
    """Whether the exception only says that another rank has gone."""
    text = f"{raised.type}: {raised.message}".lower()
    return any(sign in text for sign in _COLLATERAL)


def diagnose(seen: Observation, stepped: bool, step: int) -> Verdict | None:
    """The verdict on what has exited or raised so far, or None while there is nothing to judge.

    `stepped` is whether any rank has finished a step in this attempt, `step` the highest step finished.
    """
    failed = _failures(seen)
    launcher = next((e for e in seen.exits if e.rank is None), None)
    if not failed:
        return _launcher_alone(seen, launcher, stepped, step) if launcher else None
    first = _first(failed, seen.raised)
    if launcher is None and _is_victim(first, seen.raised) and seen.now < first.at + SETTLE:
        return None
    others = tuple(sorted({e.rank for e in failed if e.rank is not None and e.rank != first.rank}))
    raised = next((r for r in seen.raised if r.rank == first.rank), None)
    # The failing rank's own step: the others may be ahead, and not twice by as much.
    return _of_rank(seen.now, first, raised, others, stepped, seen.steps.get(first.rank or 0, step))


def _failures(seen: Observation) -> list[Exit]:
    """Every rank that failed. One that has raised counts before it is gone: its exit can take seconds, or for ever."""
    late = seen.now - LAST_WORDS
    exited = {e.rank: e for e in seen.exits if e.rank is not None}
    failed = [e for e in exited.values() if e.status not in (0, None)]
    return failed + [Exit(r.rank, r.exit_code, r.at) for r in seen.raised if r.rank not in exited and r.at <= late]


def _is_victim(exit_: Exit, raised: tuple[Raised, ...]) -> bool:
    """Ended by the launcher's TERM or by a lost peer: a consequence, whatever the clock says."""
    record = next((r for r in raised if r.rank == exit_.rank), None)
    return exit_.status == -15 or (record is not None and is_collateral(record))


def _first(failed: list[Exit], raised: tuple[Raised, ...]) -> Exit:
    """The failure that the others follow from: the earliest, by exception where there is one, victims last."""

    def key(exit_: Exit) -> tuple[bool, float]:
        record = next((r for r in raised if r.rank == exit_.rank), None)
        return _is_victim(exit_, raised), record.at if record else exit_.at

    return min(failed, key=key)


def _of_rank(
    now: float, first: Exit, raised: Raised | None, others: tuple[int, ...], stepped: bool, step: int
) -> Verdict:
    rank, status = first.rank, first.status or 0
    where = f"at step {step}" if step >= 0 else ("at an unknown step" if stepped else "before the first step")
    failed_at = min(first.at, raised.at) if raised else first.at

    def verdict(cause: Cause, reason: str, signal: int | None = None, code: int | None = None) -> Verdict:
        if others:
            reason += f"; rank{'s' if len(others) > 1 else ''} {', '.join(map(str, others))} followed"
        return Verdict(
            cause=cause,
            reason=reason,
            at=now,
            rank=rank,
            signal=signal,
            exit_code=code,
            step=step,
            frame=raised.frame if raised else "",
            failed_at=failed_at,
            collateral=others,
            bad_step=raised.bad_step if raised else -1,
            data_step=raised.data_step if raised else -1,
        )

    if status < 0:
        if -status in _CRASHES:
            cause, name = _CRASHES[-status]
            return verdict(cause, f"rank {rank} died of {name} {where}", signal=-status)
        name = _KILLERS.get(-status, f"signal {-status}")
        return verdict(Cause.KILLED, f"rank {rank} was killed by {name} {where}", signal=-status)
    if status == PREEMPTED:
        return verdict(Cause.PREEMPTED, f"rank {rank} exited with 75: it asks to be started again", code=status)
    if status == NEVER_RESTART:
        why = f": {raised.message}" if raised and raised.message else ""
        return verdict(Cause.USER_ERROR, f"rank {rank} exited with 78: it says no restart can help{why}", code=status)
    if raised is None:
        cause = Cause.EXCEPTION if stepped else Cause.STARTUP_ERROR
        if not stepped and status == 2:
            return verdict(Cause.USER_ERROR, f"rank {rank} exited with 2 (usage error) {where}", code=2)
        return verdict(cause, f"rank {rank} exited with {status} {where}", code=status)
    what = f"rank {rank} raised {raised.type}: {raised.message or '(no message)'} {where}, in {raised.frame}"
    if raised.type in NOT_FINITE:
        return verdict(Cause.NAN, f"rank {rank} raised {raised.type}: {raised.message}", code=status)
    if raised.type in USER_ERRORS and not stepped:
        return verdict(Cause.USER_ERROR, what, code=status)
    return verdict(Cause.EXCEPTION if stepped else Cause.STARTUP_ERROR, what, code=status)


def _launcher_alone(seen: Observation, launcher: Exit, stepped: bool, step: int) -> Verdict:
    def verdict(cause: Cause, reason: str, signal: int | None = None, code: int | None = None) -> Verdict:
        return Verdict(cause, reason, seen.now, None, signal, code, step, failed_at=launcher.at)

    status = launcher.status
    if status == 0:
        return verdict(Cause.FINISHED, "every rank exited with 0" + (f" at step {step}" if step >= 0 else ""), code=0)
    if status is not None and status < 0:
        name = _KILLERS.get(-status, f"signal {-status}")
        return verdict(Cause.LAUNCHER_DIED, f"the launcher was killed by {name}", signal=-status)
    where = "after the first step" if stepped else "before any rank had started"
    cause = Cause.LAUNCHER_DIED if stepped else Cause.STARTUP_ERROR
    return verdict(cause, f"the launcher exited with {status} {where}; see launcher.log", code=status)
