"""The hang rule: how long a rank may be silent in each phase, learned from what was seen.

A verdict needs one overdue rank. In the train phase of a script that is idle (no CPU used by any rank) the short limit
holds, because two signals agree; a busy one may be evaluating without saying so, and gets the long limit. The machine's
own pauses (suspend, a stopped supervisor) are forgiven.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from supervisor.core.model import Observation, Policy, RankView

IDLE_FLOOR = 10.0
BUSY_FLOOR_ANNOUNCED = 60.0
BUSY_FLOOR = 300.0
FACTOR = 25.0
"""Times the slowest step seen lately: a step twenty times slower than usual is not a hang."""
WARM_UP = 5
SAVE_LIMIT = 1800.0
STOPPED_FOR = 0.8
PAUSE = 3.0
"""A gap between two looks that is longer than this was a pause of the machine or of the supervisor."""
_IDLE_SHARE = 0.05
_CPU_SPAN = 5.0


@dataclass(frozen=True, slots=True)
class Silence:
    """A rank that is overdue, and why that is so."""

    rank: int
    stopped: bool
    silent_for: float
    limit: float
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class Watched:
    """What the rule remembers of one rank."""

    step: int
    beat_at: float
    stopped_since: float | None
    cpu: float
    cpu_since: float
    """Since when it has used hardly any CPU."""


@dataclass(frozen=True, slots=True)
class Hang:
    """What the rule remembers. `slowest` outlives attempts; the rest is of the one that runs."""

    looked_at: float | None = None
    forgiven: float = 0.0
    slowest: float = 0.0
    intervals: int = 0
    ranks: dict[int, Watched] = field(default_factory=dict)

    def new_attempt(self) -> Hang:
        return Hang(slowest=self.slowest, intervals=self.intervals)


def look(hang: Hang, policy: Policy, seen: Observation) -> tuple[Hang, Silence | None]:
    """The memory after this look, and the most overdue rank if there is one."""
    gap = seen.now - hang.looked_at if hang.looked_at is not None else 0.0
    hang = replace(hang, looked_at=seen.now, forgiven=hang.forgiven if gap < PAUSE else seen.now)
    ranks: dict[int, Watched] = {}
    for view in seen.ranks:
        ranks[view.rank], interval = _watch(hang.ranks.get(view.rank), view, seen.now, hang.forgiven)
        if interval is not None:
            hang = replace(hang, slowest=max(interval, hang.slowest * 0.995), intervals=hang.intervals + 1)
    hang = replace(hang, ranks=ranks)
    overdue = [s for view in seen.ranks if (s := _silence(hang, policy, seen, view))]
    return hang, min(overdue, key=lambda s: (not s.stopped, s.since), default=None)


def _watch(old: Watched | None, view: RankView, now: float, forgiven: float) -> tuple[Watched, float | None]:
    if old is None:
        return Watched(view.step, view.beat_at, now if view.stopped else None, view.cpu, now), None
    interval = None
    # An interval that a pause fell into says nothing of the script.
    if view.step > old.step and view.phase == "train" and old.beat_at > forgiven and old.step >= 0:
        interval = max(view.beat_at - old.beat_at, 0.0) / (view.step - old.step)
    stopped_since = (old.stopped_since or now) if view.stopped else None
    used, span = view.cpu - old.cpu, now - old.cpu_since
    busy = used > _IDLE_SHARE * max(span, 1.0)
    cpu, since = (view.cpu, now) if busy else (old.cpu, old.cpu_since)
    return Watched(view.step, view.beat_at, stopped_since, cpu, since), interval


def limit(hang: Hang, policy: Policy, view: RankView, idle: bool) -> float:
    """Seconds for which `view` may stay silent in its phase."""
    if policy.hang_timeout == float("inf"):
        return float("inf")
    if view.phase in ("startup", "restore", "first_step", "none"):
        return policy.startup_timeout
    if view.phase in ("save", "eval", "teardown"):
        return max(SAVE_LIMIT, policy.hang_timeout or 0.0)
    if policy.hang_timeout is not None:
        return policy.hang_timeout
    busy_floor = BUSY_FLOOR_ANNOUNCED if view.announces else BUSY_FLOOR
    if hang.intervals < WARM_UP:
        return BUSY_FLOOR
    return max(IDLE_FLOOR if idle else busy_floor, FACTOR * hang.slowest)


def _silence(hang: Hang, policy: Policy, seen: Observation, view: RankView) -> Silence | None:
    known = hang.ranks[view.rank]
    if policy.hang_timeout == float("inf"):
        return None
    if known.stopped_since is not None and seen.now - max(known.stopped_since, hang.forgiven) >= STOPPED_FOR:
        held = seen.now - known.stopped_since
        reason = f"rank {view.rank} is stopped (state T) at step {view.step}, for {held:.1f} s"
        return Silence(view.rank, True, held, STOPPED_FOR, reason, known.stopped_since)
    idle = all(seen.now - w.cpu_since >= _CPU_SPAN for w in hang.ranks.values())
    allowed = limit(hang, policy, view, idle)
    life = view.beat_at if view.announces else max(view.beat_at, seen.log_grew_at)
    silent = seen.now - max(life, hang.forgiven)
    if silent < allowed:
        return None
    how = "idle" if idle else "busy"
    reason = (
        f"rank {view.rank} is silent for {silent:.1f} s in phase {view.phase} at step {view.step} "
        f"(limit {allowed:.1f} s, processes {how})"
    )
    return Silence(view.rank, False, silent, allowed, reason, life)
