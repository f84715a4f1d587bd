"""How far the clock of another machine is from ours, by messages that were answered.

Half of the way there and back is the most that an answer can be wrong by. So the fastest answer of the last half minute
counts. It is not much older because clocks drift: by 50 ppm in that time, 1.5 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = 30.0


@dataclass(frozen=True, slots=True)
class Sample:
    at: float
    """When the answer came, by our clock."""
    offset: float
    trip: float
    """Seconds there and back, without the time at the other side."""


@dataclass(frozen=True, slots=True)
class Offset:
    """The clock of one other machine."""

    samples: tuple[Sample, ...] = ()
    """Oldest first. Each is faster than all that came after it, so the first one is the fastest."""

    def answered(self, sent: float, came: float, replied: float, heard: float) -> Offset:
        """A message was sent and its answer heard at these times of our clock. It came and was replied to at those
        times of the other clock."""
        new = Sample(heard, ((came - sent) + (replied - heard)) / 2, max(0.0, (heard - sent) - (replied - came)))
        kept = [s for s in self.samples if s.at > heard - WINDOW and s.trip < new.trip]
        return Offset((*kept, new))

    @property
    def seconds(self) -> float:
        """The other clock minus ours. 0 before any answer."""
        return self.samples[0].offset if self.samples else 0.0

    @property
    def doubt(self) -> float:
        """The seconds by which that may be wrong. Infinite before any answer."""
        return self.samples[0].trip / 2 if self.samples else float("inf")
