"""The processes of a group: a rank does not come, a launcher outlives the ranks, or a process stands still unseen.

    a process is stopped (state T) before its rank has registered     0.4 s     stopped
    the launcher is stopped while a rank is still to start            0.4 s     stopped
    a rank has not registered at all                                  startup   hang
    every rank has exited with 0 and the launcher lives on            1 s       finished
    every rank is gone, one of unknown end, the launcher lives on     10 s      launcher_died

The seconds are time that the supervisor has watched. A pause of the machine counts as half a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.core.hangs.hang import LONGEST_GAP, STOPPED_FOR
from supervisor.core.hangs.limits import STARTING
from supervisor.core.members import Group, Member
from supervisor.core.model import Cause, Observation, Policy, Verdict
from supervisor.core.stack import named

LATE = 1.0
"""Seconds that a launcher may take to see that all its ranks have exited with 0. A stopped launcher never sees it."""
UNTOLD = 10.0
"""The same if only the launcher knows how the ranks ended."""


@dataclass(frozen=True, slots=True)
class Presence:
    """The memory of one attempt, in watched seconds."""

    looked_at: float | None = None
    stopped: Mapping[int, float] = field(default_factory=dict)
    """By pid: the seconds for which a process has been stopped that is still needed for the start."""
    missing: float = 0.0
    """Seconds for which there is a launcher while a rank has not registered."""
    alone: float = 0.0
    """Seconds for which the launcher has had no ranks."""


def look(known: Presence, policy: Policy, seen: Observation) -> tuple[Presence, Verdict | None]:
    """The memory after this look, and the verdict if a process of the group is missing or stopped."""
    group = seen.group
    if group is None or group.launcher is None:
        return Presence(seen.now), None
    passed = min(seen.now - known.looked_at, LONGEST_GAP) if known.looked_at is not None else 0.0
    missing = _missing(group, seen)
    starting = bool(missing) or any(view.phase in STARTING for view in seen.ranks)
    needed = [*group.unborn, group.launcher] if starting else []
    known = Presence(
        looked_at=seen.now,
        stopped={m.pid: known.stopped.get(m.pid, -passed) + passed for m in needed if m.stopped},
        missing=known.missing + passed if missing else 0.0,
        alone=known.alone + passed if not missing and not seen.ranks else 0.0,
    )
    if policy.hang_timeout != float("inf"):
        if verdict := _stopped(known, needed, missing, seen.now):
            return known, verdict
        if known.missing >= policy.startup_timeout:
            reason = f"{named(missing)} did not come up within {policy.startup_timeout:.0f} s of the launch"
            return known, Verdict(Cause.HANG, reason, seen.now, missing[0], failed_at=seen.now - known.missing)
    return known, _deserted(known, seen)


def all_left_with_0(seen: Observation) -> bool:
    """Whether the work of the group is done: every rank has exited with 0."""
    done = {e.rank for e in seen.exits if e.rank is not None and e.status == 0}
    return seen.group is not None and len(done) == seen.group.nproc


def _missing(group: Group, seen: Observation) -> list[int]:
    come = {view.rank for view in seen.ranks} | {e.rank for e in seen.exits}
    return [rank for rank in range(group.nproc) if rank not in come]


def _stopped(known: Presence, needed: list[Member], missing: list[int], now: float) -> Verdict | None:
    for member in needed:
        if (seconds := known.stopped.get(member.pid, 0.0)) >= STOPPED_FOR:
            who = f"rank {member.rank}" if member.rank is not None else "a process that is to be a rank"
            if member.launcher:
                who, when = "the launcher", "while ranks are still starting"
            else:
                when = "before it has registered" if missing else "while ranks are still starting"
            reason = f"{who} (pid {member.pid}) is stopped (state T) for {seconds:.1f} s, {when}"
            return Verdict(Cause.STOPPED, reason, now, member.rank, failed_at=now - seconds)
    return None


def _deserted(known: Presence, seen: Observation) -> Verdict | None:
    """The verdict on a launcher without ranks. None of the ranks has failed: that would have its own verdict."""
    since = max((e.at for e in seen.exits if e.rank is not None), default=seen.now)
    step = max(seen.steps.values(), default=-1)
    if all_left_with_0(seen):
        if known.alone < LATE:
            return None
        reason = "every rank exited with 0" + (f" at step {step}" if step >= 0 else "")
        reason += "; the launcher did not take note, and is ended"
        return Verdict(Cause.FINISHED, reason, seen.now, exit_code=0, step=step, failed_at=since)
    if known.alone < UNTOLD:
        return None
    reason = f"every rank is gone; only the launcher knows how they ended, and it does nothing for {known.alone:.0f} s"
    return Verdict(Cause.LAUNCHER_DIED, reason, seen.now, step=step, failed_at=since)
