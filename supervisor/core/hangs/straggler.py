"""Finds a rank that is slower than the others, step after step. It is told, never killed.

In a group that exchanges gradients all ranks finish a step together, but they arrive at different times. So the time of
their own work is compared: from the end of one backward pass to the beginning of the next. For each rank the median
over a window of looks is compared with the median of the others. So a save, an evaluation or a slow moment does not
make a straggler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from supervisor.core.actions import Emit
from supervisor.core.model import RankView

WINDOW = 20
"""Looks with a new step that are needed for a judgement."""
SLOW, FINE = 1.5, 1.2
"""Times the others' work. Above the first a rank becomes slow. Below the second it is no longer slow."""
STREAK = 2
"""Equal judgements in a row that are needed, either way."""
NOTABLE = 0.002
"""A rank that loses fewer seconds per step than this is no straggler."""


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank that has become slow, or no longer is."""

    rank: int
    slow: bool
    own: float
    """Seconds of its own work per step."""
    others: float

    @property
    def event(self) -> Emit:
        times = self.own / max(self.others, 1e-9)
        words = f"takes {times:.1f} times as long as the others" if self.slow else "is as fast as the others again"
        fields = {
            "rank": self.rank,
            "slow": self.slow,
            "own_s": round(self.own, 4),
            "others_s": round(self.others, 4),
            "text": f"rank {self.rank} {words} for its own work, {self.own * 1e3:.0f} ms a step",
        }
        return Emit("straggler", "warning" if self.slow else "info", fields)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The memory of one attempt."""

    last: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    """By rank: the step, and the own work up to that step."""
    samples: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    streaks: Mapping[int, int] = field(default_factory=dict)
    slow: frozenset[int] = frozenset()


def arrive(known: Arrivals, views: Sequence[RankView]) -> tuple[Arrivals, list[Straggler]]:
    """The memory after this look, and the changes."""
    if len(views) < 2:
        return known, []
    samples = dict(known.samples)
    last = dict(known.last)
    for view in views:
        step, own = known.last.get(view.rank, (view.step, view.own))
        if view.step > step and view.own > own:
            # The newest only: a rank that never makes a backward pass has none, and nothing is judged.
            samples[view.rank] = (*samples.get(view.rank, ()), (view.own - own) / (view.step - step))[-WINDOW:]
        if view.step != step or view.rank not in last:
            last[view.rank] = (view.step, view.own)
    if any(len(samples.get(view.rank, ())) < WINDOW for view in views):
        return Arrivals(last, samples, known.streaks, known.slow), []
    return _judge(Arrivals(last, {}, known.streaks, known.slow), {v.rank: _median(samples[v.rank]) for v in views})


def _judge(known: Arrivals, works: Mapping[int, float]) -> tuple[Arrivals, list[Straggler]]:
    streaks, slow, changes = dict(known.streaks), set(known.slow), []
    for rank, own in works.items():
        others = _median([work for other, work in works.items() if other != rank])
        was = rank in slow
        turned = own < FINE * others if was else own > SLOW * others and own - others > NOTABLE
        streaks[rank] = streaks.get(rank, 0) + 1 if turned else 0
        if streaks[rank] >= STREAK:
            streaks[rank] = 0
            slow ^= {rank}
            changes.append(Straggler(rank, not was, own, others))
    return Arrivals(known.last, known.samples, streaks, frozenset(slow)), changes


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
