"""When a checkpoint or a snapshot is due: at a fixed number of steps, or as often as is worth its cost."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

ASSUMED_MTBF_S = 3600.0
_FIRST_COST_S = 0.005
_MOST_OVERHEAD = 0.02
_SNAPSHOT_OVERHEAD = (0.005, 0.01)
_MEMORY = 9
_CLEAN = 64
_FEW = 5
_STALL = 0.05
_STALL_TIMES = 3
_STALL_S = 0.2
"""No warning while saves cost less than this share of the time. Before a warning, at least this many saves and seconds
of stall must have been seen."""


def flush_cost(seconds: float, spare: bool) -> float:
    """What a flush of `seconds` costs training, in seconds: a tenth if there is a `spare` core (disk and memory are
    shared), else all of it. Without a spare core it slows one rank, although niced, and so all the others."""
    return seconds * (0.1 if spare else 1.0)


def passed(every: int, before: int, done: int) -> bool:
    """Whether a multiple of `every` lies between the step `before` and `done`: a loop may not name every step."""
    return done // every > before // every


@dataclass(slots=True)
class Interval:
    """The rule "auto": Young and Daly's sqrt(2 x cost x time between failures), in seconds of training.

    The cost is that of the newest save. Before the first save it is taken as 5 ms, so the first save comes after 6 s
    and measures the cost; 6 s is also the shortest interval. One failure an hour is assumed, not measured. Saving never
    takes more than 2 % of the time. If a flush makes the checkpoint, the cost is that of its snapshot and of the flush,
    the median of the last three.
    """

    cost_s: float = _FIRST_COST_S
    since: float = -math.inf
    """When the last save ended, or training began; the caller's clock, in seconds."""

    @property
    def seconds(self) -> float:
        return max(math.sqrt(2 * self.cost_s * ASSUMED_MTBF_S), self.cost_s / _MOST_OVERHEAD)

    def due(self, now: float) -> bool:
        return now - self.since >= self.seconds

    def saved(self, now: float, cost_s: float) -> None:
        self.cost_s, self.since = max(cost_s, _FIRST_COST_S), now


@dataclass(slots=True)
class Pace:
    """The rule "auto" for snapshots: the smallest number of steps at which they cost no more than a share of the time.

    That share is 0.5 %. In a run that fails often, repeated steps cost more; then the share is the cost of Young and
    Daly's interval, sqrt(cost / (2 x time between failures)), up to 1 %. Times are medians of the last nine, so that
    one slow step changes nothing. At the start a snapshot is due at every step.

    What a snapshot costs on a GPU, or on the network, cannot be seen by the host. There, steps beside which one is
    copied are compared with those of the same run that have none; so now and then a step is left without one.
    """

    mtbf_s: float = math.inf
    every: int = 1
    _costs: deque[float] = field(default_factory=lambda: deque(maxlen=_MEMORY))
    _steps: deque[float] = field(default_factory=lambda: deque(maxlen=_MEMORY))
    _last: float | None = None
    _clean: deque[float] = field(default_factory=lambda: deque(maxlen=_CLEAN))
    """Seconds of steps on the device beside which nothing was copied."""
    _beside: list[float] = field(default_factory=list)
    """Those of the steps since the last such one."""
    _taken: int = 0
    """Snapshots since then."""
    _extras: deque[float] = field(default_factory=lambda: deque(maxlen=_MEMORY))
    _moving: deque[float] = field(default_factory=lambda: deque(maxlen=_MEMORY))
    _timed: bool = False

    def due(self, steps: int) -> bool:
        """Whether a snapshot is due, `steps` after the last one."""
        if self._timed and self._beside and (len(self._clean) < _FEW or self._taken >= _MEMORY):
            return False  # a step without one is needed first
        return steps >= self.every

    def timed(self, seconds: float, busy: bool) -> None:
        """A step took so long on the device; `busy`: a snapshot was copied beside it."""
        self._timed = True
        if busy:
            self._beside.append(seconds)
            return
        self._clean.append(seconds)
        if self._beside and self._taken and len(self._clean) >= 3:
            extra = sum(self._beside) - len(self._beside) * statistics.median(self._clean)
            self._extras.append(max(0.0, extra) / self._taken)
        self._beside, self._taken = [], 0

    def made(self) -> None:
        """Memory is being made for the snapshot that was taken last: the steps beside that do not tell what one
        costs."""
        self._taken = 0

    def stepped(self, now: float, beside: bool | None = None) -> None:
        """A step has ended at `now`, seconds of the caller's clock. `beside`: whether a snapshot was on the network
        meanwhile; None: the network counts for nothing."""
        if self._last is not None:
            self._steps.append(now - self._last)
            if beside is not None:
                self.timed(now - self._last, beside)
        self._last = now

    def spent(self, cost_s: float, moving_s: float | None = None) -> None:
        """A snapshot has cost `cost_s` seconds. It was on the network for `moving_s`: so much longer, at the most, are
        the steps beside which it was."""
        self._costs.append(cost_s)
        self._taken += 1
        if moving_s is not None:
            self._moving.append(moving_s)
        if len(self._costs) >= 3 and self._steps:
            cost, step = statistics.median(self._costs), max(statistics.median(self._steps), 1e-6)
            if self._extras:
                most_s = cost + statistics.median(self._moving) if self._moving else math.inf
                cost = max(cost, min(statistics.median(self._extras), most_s))
            least, most = _SNAPSHOT_OVERHEAD
            overhead = min(max(math.sqrt(cost / (2 * max(self.mtbf_s, 1e-6))), least), most)
            self.every = max(1, math.ceil(cost / (overhead * step)))


def time_limit(elapsed_s: float, flush_s: float | None, save_s: float | None) -> float:
    """Seconds to wait for a flush that has run for `elapsed_s`, before the ranks save a due step themselves. Their last
    own save took `save_s`; the wait is never longer. It is 0 if most of the flush is still to come, or if it takes so
    much longer than the last one that it may never end (its supervisor may be gone)."""
    if save_s is None:
        return 0.0
    usual = 2 * save_s if flush_s is None else flush_s
    return save_s if usual - save_s <= elapsed_s <= 2 * usual else 0.0


def stalled(stalls: Mapping[str, Stalls], now: float, due: bool, step_s: float, snapshot_s: float) -> list[str]:
    """The warnings, each once, after a step whose saves took `step_s` seconds, and its snapshot `snapshot_s` of them.
    `due`: a checkpoint was due by an explicit number of steps."""
    if due:
        stalls["checkpoints"].held_up(step_s)
    elif snapshot_s and "snapshots" in stalls:
        stalls["snapshots"].held_up(snapshot_s)
    return [sentence for one in stalls.values() if (sentence := one.sentence(now))]


@dataclass(slots=True)
class Stalls:
    """The time that saves (or snapshots) at an explicit number of steps take from training. One warning if it is
    much."""

    what: str
    every: int
    stalled_s: float = 0.0
    _times: int = 0
    _began: float | None = None
    _told: bool = False

    def held_up(self, seconds: float) -> None:
        """One more save was made. Training stood still for `seconds`."""
        self.stalled_s += seconds
        self._times += 1

    def sentence(self, now: float) -> str | None:
        """The warning, once, if saves took more than 5 % of the time since the first call. `now`: the caller's
        clock."""
        if self._began is None:
            self._began = now - self.stalled_s
        elapsed = now - self._began
        share = self.stalled_s / elapsed if elapsed > 0 else 0.0
        if self._told or share <= _STALL or self._times < _STALL_TIMES or self.stalled_s < _STALL_S:
            return None
        self._told = True
        work = max(elapsed - self.stalled_s, 1e-6) / self._times
        enough = math.ceil(self.every * (1 / _STALL - 1) * self.stalled_s / self._times / work)
        digits = 10 ** max(0, len(str(enough)) - 2)
        often = f"every {self.every} steps" if self.every > 1 else "at every step"
        return (
            f"{self.what} {often} take {100 * share:.0f} % of the time: "
            f"every {math.ceil(enough / digits) * digits} would take {100 * _STALL:.0f} %, auto chooses by itself"
        )
