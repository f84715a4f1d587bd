"""The limits of a rank's silence. They depend on its activity, on the times seen, and on the cost of a mistake.

A wrong verdict costs a restart and the work that has to be redone. A late verdict costs the wait. Waiting as long as a
mistake would cost is never worse than twice the best (ski rental). So a limit is the cost times the doubt in the
evidence:

    held    no rank can go on unless another one does: 0.01 x cost    a second, hardly a doubt
    polls   every rank sleeps and looks, again and again, and nothing of this run could end that: 0.3 x cost
    idle    no CPU is used, but a disk, a network or a timer may answer: 1 x cost
    busy    the CPU is used: a long step, an evaluation or an endless loop look the same from outside: 10 x cost

Each limit has a floor and a ceiling. The last two never end before 25 typical steps, or 3 of the slowest step seen.

The last two are for cases where nothing more is known. Samples of the stacks (motion.py) tell a moving rank from a
frozen one, and show what might still wake the frozen one. Their limits begin after the usual pause and need no cost.
"""

from __future__ import annotations

from supervisor.core.hangs.motion import Kind
from supervisor.core.hangs.timings import Pace
from supervisor.core.model import STARTUP_TIMEOUT, Policy
from trainer.rundir.codes import Phase

FACTOR = 25.0
"""Times the typical step. A step that takes twenty times as long is not a hang."""
MARGIN = 3.0
"""Times the slowest step."""
WARM_UP = 5
"""Looks with new steps that are needed before the time of a step counts as known."""
HELD = (0.01, 1.0, 10.0)
"""(times the cost, at least, at most), in seconds."""
POLLS = (0.3, 8.0, 60.0)
IDLE = (1.0, 3.0, 60.0)
IDLE_UNTOLD = (1.0, 30.0, 120.0)
"""For a script that tells nothing: it may be uploading a model."""
BUSY = (10.0, 15.0, 60.0)
BUSY_UNTOLD = (10.0, 300.0, 300.0)
"""For a script that tells nothing: it may be evaluating."""
DISK_LIMIT = 120.0
"""The limit while a rank waits for a disk or a file server. They are slow under load, and a kill does not end the
wait."""
SAVE_LIMIT = 1800.0
PHASE_FLOOR = 120.0
"""The least limit of every phase but train, however short the phase was so far."""
MOVING_LIMIT = 1800.0
"""Seconds of silence for which a rank may move, or wait for a disk. An evaluation is no hang."""
FROZEN = {
    Kind.PYTHON: 55.0,
    Kind.BETWEEN: 300.0,
    Kind.NATIVE: 600.0,
    Kind.ANSWERED: 600.0,
    Kind.LOCKED: 120.0,
    Kind.DISK: float("inf"),
    Kind.WATCHED: float("inf"),
    Kind.MOVING: float("inf"),
}
"""Seconds without any movement in the samples, by the kind of standstill."""
FROZEN_MET = {True: 300.0, False: 120.0}
"""The same in a collective. True: the rank uses the CPU, as NCCL does. False: it is idle."""
FROZEN_ALONE = 13.0
"""The same for a lock, while another rank stands in a collective. That rank waits for this one, and nothing of this
rank can end the wait. With the first samples this is 15 s after the usual pause."""
PATIENT = (Kind.MOVING, Kind.NATIVE, Kind.ANSWERED, Kind.DISK, Kind.WATCHED)
"""The kinds that keep their full limit even if the loop tells its phases."""
AGAIN = 1.5
"""Times the longest silence of a busy rank that has ended by itself: an evaluation comes again, and takes about as
long."""
SAMPLED_AFTER = 1.0
"""Seconds of silence before which no rank is sampled, even if the steps are short."""
SAMPLED_COLD = 10.0
"""The same while the time of a step is not known."""
SAMPLES_LATE = 10.0
"""Seconds that are added to a limit without samples if samples are possible."""
STARTING = (Phase.NONE, Phase.STARTUP, Phase.RESTORE, Phase.FIRST_STEP)


def stay(phase: Phase, again: bool) -> str:
    """The name of a stay in `phase`, in the pace. A start that goes on from a state (`again`) skips data, restores, and
    compiles with cold caches: the first start tells nothing about it."""
    return f"{phase.word} again" if again and phase in STARTING else phase.word


def told_limit(pace: Pace, policy: Policy, phase: Phase, again: bool = False) -> float:
    """Seconds of silence in a phase that has its own limit, or a limit from the user. `again`: as for stay()."""
    if phase is Phase.TRAIN:
        return policy.hang_timeout or 0.0
    given = policy.hang_timeout or 0.0
    ceiling = policy.startup_timeout if phase in STARTING else max(SAVE_LIMIT, given)
    seen = pace.phases.get(stay(phase, again))
    given_for_start = policy.hang_timeout is not None or policy.startup_timeout != STARTUP_TIMEOUT
    if seen is None or (phase in STARTING and given_for_start):
        return ceiling
    return min(ceiling, max(PHASE_FLOOR, given, FACTOR * seen))


def usual(pace: Pace, doubt: float) -> float:
    """The silence that is always allowed. A step that takes twenty times as long as others is normal. So is a step like
    the slowest, or a silence like `doubt`, which has ended in a verdict."""
    return max(FACTOR * pace.typical, MARGIN * pace.slowest, MARGIN * doubt)


def frozen_limit(kind: Kind, busy: bool, met: bool, cost: float | None = None) -> float:
    """Seconds without movement. `met`: another rank stands in a collective, and this rank cannot be waiting for a GPU.
    `cost`: the cost of a mistake, for a loop that tells its phases. Such a loop has no untold pauses."""
    limit = FROZEN_MET[busy] if kind is Kind.MET else FROZEN[kind]
    if kind is Kind.LOCKED and met:
        limit = FROZEN_ALONE
    if cost is None or kind in PATIENT:
        return limit
    return min(limit, _between(BUSY if busy or kind in (Kind.PYTHON, Kind.BETWEEN) else IDLE, cost))


def sampled_after(pace: Pace, normal: float) -> float:
    """Seconds of silence after which a rank is sampled."""
    return max(normal, SAMPLED_AFTER if len(pace.recent) >= WARM_UP else SAMPLED_COLD)


def held_limit(cost: float) -> float:
    return _between(HELD, cost)


def train_limit(kind: str, pace: Pace, normal: float, cost: float, announces: bool, disk: bool) -> float:
    """Seconds of silence in training, idle or busy, if nobody has set a limit."""
    if len(pace.recent) < WARM_UP:
        return BUSY_UNTOLD[2] if kind == "busy" else IDLE_UNTOLD[2]
    idle, busy = (IDLE, BUSY) if announces else (IDLE_UNTOLD, BUSY_UNTOLD)
    if kind == "polls":
        return max(normal, min(_between(POLLS, cost), _between(idle, cost)))
    if kind == "idle":
        return max(normal, _between(idle, cost))
    # A loop that announces its evaluations has their times apart.
    again = 0.0 if announces else min(AGAIN * pace.longest, MOVING_LIMIT)
    return max(normal, _between(busy, cost), again, DISK_LIMIT if disk else 0.0)


def _between(rule: tuple[float, float, float], cost: float) -> float:
    times, floor, ceiling = rule
    return min(max(times * cost, floor), ceiling)
