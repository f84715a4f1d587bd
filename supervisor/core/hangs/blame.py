"""The blame for a silence: the odd rank among those that stand still, and the verdict that names it."""

from __future__ import annotations

from collections.abc import Mapping

from supervisor.core.hangs.hang import Silence
from supervisor.core.model import Cause, Observation, Verdict
from supervisor.core.stack import Stacks, grouped, named


def hang_verdict(seen: Observation, silence: Silence, stacks: Stacks | None) -> Verdict:
    """The verdict on the odd rank, with the place where it stands, and the place of most other ranks."""
    steps = {view.rank: view.step for view in seen.ranks}
    rank = silence.rank if silence.stopped else odd(steps, stacks)
    alike = rank is None
    if rank is None:
        rank = silence.rank
    # The rank's work in this attempt may not be known as steps of the run.
    step = seen.steps.get(rank, steps.get(rank, silence.step))
    at = f"at step {step}" if step >= 0 else "at an unknown step"
    stack = stacks.of(rank) if stacks else None
    cause = Cause.STOPPED if silence.stopped else Cause.HANG
    if silence.stopped:
        reason = f"rank {rank} is {silence.evidence}, {at}"
    else:
        who = f"{named(sorted(steps))} hang together" if alike and len(steps) > 1 else f"rank {rank} hangs"
        reason = f"{who} {at}{f': {stack.place}' if stack else ''}; {silence.evidence}"
    if stacks is not None:
        others = [(r, s) for r, s in grouped(stacks.stacks) if rank not in r]
        reason += "".join(f"; in the child {s.child}: {s.place}" for s in stacks.children(rank)[:1])
        reason += "".join(f"; {named(r)}: {s.place}" for r, s in others[-1:])
    frame = str(stack.frames[0]) if stack and stack.frames else ""
    return Verdict(cause, reason, seen.now, rank, step=step, frame=frame, failed_at=silence.since)


def odd(steps: Mapping[int, int], stacks: Stacks | None) -> int | None:
    """The rank that the others wait for, or None if nothing tells it apart. `steps` are the steps finished by each
    rank.

    A rank that waits in a collective is a victim. So a rank that does not wait in one is to blame. If all ranks wait in
    one, a rank that is ahead has skipped a collective of the others. A rank at another place than most is odd too.
    """
    known = {rank: stack for rank in steps if stacks is not None and (stack := stacks.of(rank)) is not None}
    apart = [rank for rank, stack in known.items() if not stack.exchanges]
    if known and 0 < len(apart) < len(known):
        return min(apart, key=lambda rank: (steps[rank], rank))
    candidates = list(steps)
    if len(set(steps.values())) > 1:
        # All ranks stand still. Those in a collective wait for the rank that has gone on without it.
        ahead = bool(known) and not apart
        edge = max(steps.values()) if ahead else min(steps.values())
        candidates = [rank for rank, step in steps.items() if step == edge]
        if len(candidates) == 1:
            return candidates[0]
    groups = grouped([known[rank] for rank in candidates if rank in known])
    if len(groups) > 1 and len(groups[0][0]) == 1 and (len(groups[1][0]) > 1):
        return groups[0][0][0]
    return None
