"""Ranks that have left without a failure, while others still need them in a collective.

To leave early is no failure by itself. A rank may be done while the others still train, evaluate or upload. It becomes
a failure as soon as they wait for that rank. The signs are a lost connection to it, a timeout, or a standstill in a
collective.
"""

from __future__ import annotations

from dataclasses import dataclass

from supervisor.core.model import Cause, Observation, Verdict
from supervisor.core.stack import Stacks, named
from trainer.rundir.codes import Phase


@dataclass(frozen=True, slots=True)
class Leaver:
    """A rank that takes no part any more."""

    rank: int
    at: float
    how: str
    ended: bool
    """Whether its process is gone. If not, its script is over."""


def leavers(seen: Observation) -> list[Leaver]:
    """The ranks that have left, in time order. Ranks that have failed are not in it."""
    failed = {raised.rank for raised in seen.raised}
    found = []
    for e in seen.exits:
        if e.rank is not None and e.status in (0, None) and e.rank not in failed:
            how = "left with 0" if e.status == 0 else "is gone, and nothing tells how it ended,"
            found.append(Leaver(e.rank, e.at, how, ended=True))
    for view in seen.ranks:
        if view.phase is Phase.TEARDOWN and view.rank not in failed:
            found.append(Leaver(view.rank, view.beat_at, "had come to the end of its script", ended=False))
    return sorted(found, key=lambda leaver: (leaver.at, leaver.rank))


def left_verdict(
    seen: Observation, leaver: Leaver, stepped: bool, then: str, frame: str = "", failed_at: float | None = None
) -> Verdict:
    """The verdict that a rank left too early; `then` tells which ranks waited for it."""
    step = seen.steps.get(leaver.rank, -1)
    where = f"at step {step}" if step >= 0 else "at an unknown step" if stepped else "before the first step"
    return Verdict(
        Cause.EXCEPTION if stepped else Cause.STARTUP_ERROR,
        f"rank {leaver.rank} {leaver.how} {where}; {then}",
        seen.now,
        rank=leaver.rank,
        exit_code=0 if leaver.ended else None,
        step=step,
        frame=frame,
        failed_at=leaver.at if failed_at is None else failed_at,
    )


def waited_for(seen: Observation, stepped: bool, stacks: Stacks, silent_for: float) -> Verdict | None:
    """The verdict on the first rank that left, if all others stand in a collective. That rank cannot join it any
    more."""
    gone = leavers(seen)
    inside = {stack.rank for stack in stacks.stacks if stack.child is None and stack.exchanges}
    # A rank at its end may still run an exit function. That function may do what the others wait for.
    gone = [leaver for leaver in gone if leaver.ended or leaver.rank not in inside]
    rest = sorted({view.rank for view in seen.ranks} - {leaver.rank for leaver in gone})
    if not gone or not rest or not inside.issuperset(rest):
        return None
    stack = stacks.of(rest[0])
    assert stack is not None
    then = f"{named(rest)} wait{'s' * (len(rest) == 1)} for it, silent for {silent_for:.1f} s: {stack.place}"
    return left_verdict(seen, gone[0], stepped, then, str(stack.frames[0]), max(gone[0].at, seen.now - silent_for))
