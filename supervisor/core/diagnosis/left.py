"""Ranks that have left without a failure, while others still need them in a collective.

To leave early is no failure by itself: a rank may be done before the others, who train, evaluate or upload. It is one
as soon as they wait for it. That shows where they lose the connection to it, or time out, or stand still in a
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
    """Whether its process is gone; otherwise its script is over."""


def leavers(seen: Observation) -> list[Leaver]:
    """Who has left, the first one first. Not who has failed."""
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
    """That it left too early; `then` tells who waited for it."""
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
    """The verdict on the first that left, if all who are left stand in a collective, which it cannot join any more."""
    gone = leavers(seen)
    inside = {stack.rank for stack in stacks.stacks if stack.child is None and stack.exchanges}
    # Who is at its end may still have an exit function that does what the others wait for.
    gone = [leaver for leaver in gone if leaver.ended or leaver.rank not in inside]
    rest = sorted({view.rank for view in seen.ranks} - {leaver.rank for leaver in gone})
    if not gone or not rest or not inside.issuperset(rest):
        return None
    stack = stacks.of(rest[0])
    assert stack is not None
    then = f"{named(rest)} wait{'s' * (len(rest) == 1)} for it, silent for {silent_for:.1f} s: {stack.place}"
    return left_verdict(seen, gone[0], stepped, then, str(stack.frames[0]), max(gone[0].at, seen.now - silent_for))
