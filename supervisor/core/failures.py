"""The failure rate of a run, as far as one supervisor has seen it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

NEWEST = 3


@dataclass(slots=True)
class Failures:
    """The failures of a run that is launched again at once after each failure. Only the newest three count. So the rate
    shows at once if a run begins to fail every minute."""

    _launches: deque[float] = field(default_factory=lambda: deque(maxlen=NEWEST + 1))

    def launched(self, now: float) -> None:
        """An attempt begins at `now`, seconds of the caller's clock. Unless it is the first, the last attempt has
        failed."""
        self._launches.append(now)

    def mtbf(self) -> float | None:
        """The mean time between the newest failures, in seconds; None before the first one."""
        if len(self._launches) < 2:
            return None
        return (self._launches[-1] - self._launches[0]) / (len(self._launches) - 1)
