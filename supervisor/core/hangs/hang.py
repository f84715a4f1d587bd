"""The hang rule: it finds the rank that is overdue, unless another rank excuses it. The limits are in limits.py.

Silence counts only while the supervisor watches and the rank does not wait for a CPU. So neither a paused machine nor a
crowded one makes a hang. A sleep whose end the kernel tells does not count either, for ten minutes in all. A stopped
rank (state T) has no such limit. A rank gets no verdict while it may be waiting for a rank that still has time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from supervisor.core.hangs.calls import call_limit, learned
from supervisor.core.hangs.limits import (
    MARGIN,
    MOVING_LIMIT,
    SAMPLES_LATE,
    STARTING,
    WARM_UP,
    frozen_limit,
    held_limit,
    sampled_after,
    stay,
    told_limit,
    train_limit,
    usual,
)
from supervisor.core.hangs.motion import Kind, Motion, follow
from supervisor.core.hangs.timings import Pace
from supervisor.core.model import Observation, Policy, RankView
from trainer.rundir.codes import Phase

LONGEST_GAP = 0.5
"""The most silence that counts between two looks. A longer gap is a pause of the machine or of the supervisor."""
STOPPED_FOR = 0.4
ASK, ASK_BUSY = 5.0, 10.0
"""Silence after which the supervisor asks whether ranks wait for one that has left. First for idle ranks, then for
ranks that use the CPU, as NCCL does."""
COLD = 3.0
"""Seconds that a restart costs more if no standby waits."""
RESTART = 10.0
"""Seconds that a restart is taken to cost until the first start or restart was seen."""
LONGEST_SLEEP = 600.0
"""The most sleep that is excused in one silence. A loop of long sleeps is a hang like any other."""
_IDLE_SHARE = 0.05
_INFINITE = float("inf")
_WORDS = {
    "idle": ", idle",
    "busy": ", using the CPU",
    "polls": ", looking again and again",
    Kind.PYTHON: ", going round in one function",
    Kind.BETWEEN: ", at one line, with the GIL",
    Kind.NATIVE: ", in one call of a library, using the CPU",
    Kind.ANSWERED: ", in a wait that nothing has ended",
    Kind.LOCKED: ", in a wait that nothing is known to end",
    Kind.MET: ", in a collective",
    Kind.MOVING: ", at work",
}


@dataclass(frozen=True, slots=True)
class Silence:
    """A rank that is overdue, and the reason."""

    rank: int
    kind: str
    """stopped, held, polls, idle, busy, the result of samples (motion.Kind), or told: the limit of a phase or of the
    user."""
    silent_for: float
    limit: float
    since: float
    step: int
    phase: Phase

    @property
    def stopped(self) -> bool:
        return self.kind == "stopped"

    @property
    def evidence(self) -> str:
        """In words."""
        match self.kind:
            case "stopped":
                return f"stopped (state T) for {self.silent_for:.1f} s"
            case "held":
                return f"silent for {self.silent_for:.1f} s, and no rank can go on unless another one does"
            case kind:
                how = _WORDS.get(kind, "")
                return f"silent for {self.silent_for:.1f} s in phase {self.phase.word} (limit {self.limit:.1f} s{how})"


@dataclass(frozen=True, slots=True)
class Watched:
    """The memory of the rule for one rank. All times are watched time."""

    step: int
    phase: Phase
    beat_at: float
    silent: float = 0.0
    """Time since its last beat, without the time it waited for a CPU."""
    quiet: float = 0.0
    """Time since its last beat, with that time."""
    idle: float = 0.0
    """The last part of `silent` with hardly any CPU used."""
    used: float = 0.0
    """CPU time used when that part began."""
    starved: float = 0.0
    disk: bool = False
    """It has waited for a disk in this silence."""
    held: str = ""
    held_for: float = 0.0
    polls_for: float = 0.0
    slept: float = 0.0
    """The part of `silent` in sleeps that end by themselves."""
    stopped_for: float | None = None
    steps: int = 0
    """Steps done in this attempt."""
    motion: Motion | None = None
    """The result of the samples of this silence."""
    seen_after: float = 0.0
    """Time from its last beat to the look that saw it."""


@dataclass(frozen=True, slots=True)
class Hang:
    """The memory of the rule. `pace` and `doubt` outlive attempts; the rest belongs to the running attempt."""

    pace: Pace = field(default_factory=Pace)
    doubt: float = 0.0
    """The length of a silence that ended in a verdict. It counts as seen until a rank has got past `doubt_step`."""
    doubt_step: int = -1
    looked_at: float | None = None
    began_at: float | None = None
    saves: int = 0
    saved_at: float | None = None
    log_grew_at: float = 0.0
    stepped: bool = False
    ranks: dict[int, Watched] = field(default_factory=dict)
    again: bool = False
    """Whether it is not the run's first attempt."""

    def new_attempt(self, again: bool = True) -> Hang:
        return Hang(self.pace, self.doubt, self.doubt_step, again=again)

    def judged(self, silence: Silence) -> Hang:
        """The memory after a verdict. If the silence comes again at the same step, it may last three times as long."""
        if silence.kind not in _WORDS:
            return self
        return replace(self, doubt=silence.silent_for, doubt_step=silence.step)


def look(hang: Hang, policy: Policy, seen: Observation) -> tuple[Hang, Silence | None]:
    """The memory after this look, and the rank to blame if the group is overdue."""
    passed = seen.now - hang.looked_at if hang.looked_at is not None else 0.0
    hang = _learn(hang, seen, passed)
    log_grew = seen.log_grew_at > hang.log_grew_at
    gap = min(passed, LONGEST_GAP)
    ranks = {v.rank: _watch(hang.ranks.get(v.rank), v, seen.now, gap, log_grew) for v in seen.ranks}
    saved = seen.saves > hang.saves
    hang = replace(
        hang,
        looked_at=seen.now,
        began_at=hang.began_at if hang.began_at is not None or not seen.ranks else seen.now,
        saves=seen.saves,
        saved_at=seen.now if saved else hang.saved_at,
        log_grew_at=seen.log_grew_at,
        ranks=ranks,
    )
    if policy.hang_timeout == _INFINITE:
        return hang, None
    mistake = cost(hang, seen)
    overdue = {v.rank: s for v in seen.ranks if (s := _overdue(hang, policy, v, mistake)) is not None}
    blamed = [s for s in overdue.values() if s.stopped or not _excused(hang, s.rank, overdue)]
    return hang, min(blamed, key=lambda s: (not s.stopped, s.step, s.kind == "held", s.since), default=None)


def quiet(hang: Hang, policy: Policy, seen: Observation, left: set[int]) -> float | None:
    """The silence of the other ranks since some have `left`. None until it is long enough to ask for the reason."""
    rest = [hang.ranks[view.rank] for view in seen.ranks if view.rank not in left]
    if not left or not rest or policy.hang_timeout == _INFINITE:
        return None
    busy = max(usual(hang.pace, hang.doubt), ASK_BUSY)
    silent = min(known.idle if known.idle >= ASK else known.silent if known.silent >= busy else 0.0 for known in rest)
    return silent or None


def cost(hang: Hang, seen: Observation) -> float:
    """Seconds that a wrong verdict would cost now: the restart, and the work since the last safe step."""
    restart = (RESTART if hang.pace.restart is None else hang.pace.restart) + (0.0 if seen.standby else COLD)
    if seen.safe_step >= 0:
        redo = max(0, max(seen.steps.values(), default=0) - seen.safe_step) * hang.pace.typical
    else:
        since = hang.saved_at if hang.saved_at is not None else hang.began_at
        redo = seen.now - since if since is not None else 0.0
    return restart + redo


def _learn(hang: Hang, seen: Observation, passed: float) -> Hang:
    """The memory with the ranks' work since the last look. A stretch with a pause in it tells nothing about the
    script."""
    pace, slowest, steps = hang.pace, 0.0, 0
    for view in seen.ranks:
        old = hang.ranks.get(view.rank)
        if old is None or passed > LONGEST_GAP:
            continue
        pace = learned(pace, sampled(old), view.beat_at != old.beat_at, view, old.quiet + passed)
        if view.phase is old.phase is Phase.TRAIN and view.step > old.step:
            # Many steps may lie between two looks. The silence at the last look was within one step. Watched time is
            # used: a pause of the machine between two beats is not the script's.
            took = min(view.beat_at - old.beat_at, old.seen_after + old.silent + passed)
            each = max(took, 0.0) / (view.step - old.step)
            slowest, steps = max(slowest, each, old.silent), max(steps, view.step - old.step)
        elif view.phase is not old.phase is not Phase.TRAIN:
            pace = pace.stayed(stay(old.phase, hang.again), old.silent + passed)
    if steps:
        pace = pace.stepped(slowest, steps)
    if any(view.step > hang.doubt_step for view in seen.ranks if view.phase is Phase.TRAIN and hang.stepped):
        hang = replace(hang, doubt=0.0)
    first = [v.beat_at for v in seen.ranks if v.phase is Phase.TRAIN]
    if first and not hang.stepped:
        if hang.began_at is not None:
            pace = replace(pace, restart=max(0.0, min(first) - hang.began_at))
        hang = replace(hang, stepped=True)
    return replace(hang, pace=pace)


def _watch(old: Watched | None, view: RankView, now: float, passed: float, log_grew: bool) -> Watched:
    if old is None:
        stopped = 0.0 if view.stopped else None
        return Watched(view.step, view.phase, view.beat_at, used=view.cpu, starved=view.starved, stopped_for=stopped)
    lives = view.beat_at != old.beat_at or (log_grew and not view.announces)
    waited = min(passed, max(0.0, view.starved - old.starved))
    # Of the time in which it had a CPU, or wanted none. On a crowded machine work gets a small share of the CPU, but
    # all of this time; a loop that sleeps and looks has to wait for each look, but uses little.
    free = passed - waited
    busy = view.disk or view.cpu - old.used > _IDLE_SHARE * max(old.idle + free, 1.0)
    quiet = not (busy or lives)
    slept = 0.0 if lives else old.slept
    asleep = free if quiet and view.sleeps and slept < LONGEST_SLEEP else 0.0
    motion = None if lives else old.motion
    # A sample from before the last sign of life does not count.
    sample = view.sample if not lives else None
    if sample is not None and (motion.last.at if motion is not None else now - old.quiet - passed) < sample.at:
        motion = follow(motion, sample)
    return Watched(
        step=view.step,
        phase=view.phase,
        beat_at=view.beat_at,
        seen_after=min(now - view.beat_at, passed) if lives else old.seen_after,
        silent=0.0 if lives else old.silent + free,
        quiet=0.0 if lives else old.quiet + passed,
        idle=old.idle + free - asleep if quiet else 0.0,
        used=old.used if quiet else view.cpu,
        starved=view.starved,
        disk=view.disk or (old.disk and not lives),
        held=view.held,
        held_for=old.held_for + free if quiet and view.held and view.held == old.held else 0.0,
        polls_for=old.polls_for + free if quiet and view.polls else 0.0,
        slept=slept + asleep,
        stopped_for=(0.0 if old.stopped_for is None else old.stopped_for + passed) if view.stopped else None,
        steps=old.steps + max(0, view.step - old.step),
        motion=motion,
    )


def _overdue(hang: Hang, policy: Policy, view: RankView, mistake: float) -> Silence | None:
    known = hang.ranks[view.rank]

    def silence(kind: str, silent: float, allowed: float) -> Silence:
        return Silence(view.rank, kind, silent, allowed, view.beat_at, view.step, view.phase)

    if known.stopped_for is not None:
        allowed = STOPPED_FOR
        return silence("stopped", known.stopped_for, allowed) if known.stopped_for >= allowed else None
    if view.replaced:
        # Whether it works cannot be seen.
        return None
    if view.apart:
        allowed = told_limit(hang.pace, policy, Phase.TRAIN if policy.hang_timeout is not None else Phase.EVAL)
        return silence("told", known.silent, allowed) if known.silent >= allowed else None
    if view.phase is not Phase.TRAIN or policy.hang_timeout is not None:
        allowed = told_limit(hang.pace, policy, view.phase, hang.again)
        return silence("told", known.silent, allowed) if known.silent >= allowed else None
    if min(known.held_for, known.idle) >= (allowed := held_limit(mistake)):
        return silence("held", known.silent, allowed)
    normal, motion, met = usual(hang.pace, hang.doubt), sampled(known), meets(hang, view.rank)
    if motion is not None:
        kind, allowed = _frozen(hang.pace, known, motion, normal, met, mistake if view.announces else None)
        if kind is not None:
            return silence(kind.value, known.quiet, allowed)
    late = SAMPLES_LATE if view.sampled and motion is None else 0.0
    for word, silent in (("polls", known.polls_for), ("idle", known.idle), ("busy", known.silent - known.slept)):
        # While others stand in a collective, a rank that sleeps and looks may be waiting for a server.
        if motion is not None and (word != "polls" or met):
            continue
        allowed = train_limit(word, hang.pace, normal, mistake, view.announces, known.disk) + late
        if silent >= allowed:
            return silence(word, silent, allowed)
    return None


def _frozen(
    pace: Pace, known: Watched, motion: Motion, normal: float, met: bool, cost: float | None
) -> tuple[Kind | None, float]:
    """The kind of standstill, if it has lasted too long, and the limit."""
    kind = motion.kind
    allowed = call_limit(pace, motion, frozen_limit(kind, motion.busy, met and not motion.last.gpu, cost))
    # A function that loops does so even if it seldom gets a CPU. The work of a library takes longer with less CPU.
    silent = known.quiet if kind is Kind.PYTHON else known.silent
    if silent >= normal and min(motion.frozen_for, silent) >= allowed:
        return kind, allowed
    if kind is not Kind.WATCHED and known.silent - known.slept >= (allowed := max(normal, MOVING_LIMIT)):
        return Kind.MOVING, allowed
    return None, allowed


def sampled(known: Watched) -> Motion | None:
    """The result of the samples, once there are enough of them."""
    return known.motion if known.motion is not None and known.motion.known else None


def meets(hang: Hang, rank: int) -> bool:
    """Whether a rank other than `rank` is seen to stand in a collective."""
    found = (known.motion for other, known in hang.ranks.items() if other != rank)
    return any(motion is not None and motion.last.main.exchanges for motion in found)


def unexplained(hang: Hang, policy: Policy, seen: Observation) -> dict[int, float]:
    """The ranks to be sampled now, with the seconds of their silence. They train, they are silent for longer than
    usual, and nobody has set a limit."""
    if policy.hang_timeout is not None:
        return {}
    after = sampled_after(hang.pace, usual(hang.pace, hang.doubt))
    found = {}
    for view in seen.ranks:
        known = hang.ranks.get(view.rank)
        if known is None or not view.sampled or view.phase is not Phase.TRAIN:
            continue
        if not (view.stopped or view.replaced or view.apart) and max(known.silent, known.quiet / MARGIN) >= after:
            found[view.rank] = known.quiet
    return found


def _excused(hang: Hang, rank: int, overdue: dict[int, Silence]) -> bool:
    """Whether `rank` may be waiting for one that still has time. No other rank can have finished the step of `rank`."""
    mine = hang.ranks[rank]
    for other, known in hang.ranks.items():
        together = known.phase not in STARTING or mine.steps < WARM_UP
        if other not in overdue and known.step <= mine.step and together:
            return True
    return False
