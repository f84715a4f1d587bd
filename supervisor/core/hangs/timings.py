"""The speed that a run has shown: the seconds of steps, phases and restarts. Kept across attempts and supervisors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

WINDOW = 31
"""The number of steps whose median is the typical step."""
MOST_CALLS = 32
FADE = 0.999
"""Each step multiplies the slowest time by this: half of it is gone after 700 steps."""


@dataclass(frozen=True, slots=True)
class Pace:
    """All values are seconds."""

    recent: tuple[float, ...] = ()
    """The last steps, oldest first."""
    slowest: float = 0.0
    """The slowest step seen; it fades."""
    longest: float = 0.0
    """The slowest step seen; it does not fade, since a thousand steps may lie between two evaluations."""
    phases: Mapping[str, float] = field(default_factory=dict)
    """The longest stay in each phase but train."""
    calls: Mapping[str, float] = field(default_factory=dict)
    """The longest time of each long call of a library that was seen to end, by its place. The newest are kept."""
    restart: float | None = None
    """The time from the birth of the ranks to their first step, in the newest attempt."""

    @property
    def typical(self) -> float:
        """The median of the recent steps; 0 while there are none."""
        return sorted(self.recent)[len(self.recent) // 2] if self.recent else 0.0

    def stepped(self, seconds: float, steps: int = 1) -> Pace:
        """The pace with `steps` more steps, of `seconds` each."""
        slowest = max(seconds, self.slowest * FADE**steps)
        longest = max(seconds, self.longest)
        return replace(self, recent=(*self.recent, seconds)[-WINDOW:], slowest=slowest, longest=longest)

    def called(self, call: str, seconds: float) -> Pace:
        """The pace with a `call` that has ended after less than `seconds`."""
        others = [each for each in self.calls.items() if each[0] != call][-MOST_CALLS + 1 :]
        return replace(self, calls={**dict(others), call: max(seconds, self.calls.get(call, 0.0))})

    def stayed(self, phase: str, seconds: float) -> Pace:
        """The pace with a stay in `phase` that is over."""
        return replace(self, phases={**self.phases, phase: max(seconds, self.phases.get(phase, 0.0))})
