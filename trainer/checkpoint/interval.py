"""When a checkpoint is due: every so many steps, or as often as pays."""

from __future__ import annotations

import math
from dataclasses import dataclass

ASSUMED_MTBF_S = 3600.0
_FIRST_COST_S = 0.005
_MOST_OVERHEAD = 0.02


@dataclass(slots=True)
class Interval:
    """The rule "auto": Young and Daly's sqrt(2 x cost x time between failures), in seconds of training.

    The cost is that of the newest save; before the first one it is taken as 5 ms, so that the first save comes after 6 s
    and measures it. One failure an hour is assumed, not measured. Saving never takes more than 2 % of the time.
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
