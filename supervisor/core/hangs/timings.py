"""What a run has shown of its own speed: how long steps, phases and restarts take. Kept across attempts and
supervisors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

WINDOW = 31
"""Steps of which the typical one is the median."""
FADE = 0.999
"""What a step takes from the memory of the slowest: half of it is gone after 700 steps."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds."""

    recent: tuple[float, ...] = ()
    """The last steps, oldest first."""
    slowest: float = 0.0
    """The slowest step seen; it fades."""
    phases: Mapping[str, float] = field(default_factory=dict)
    """The longest stay in each phase but train."""
    restart: float | None = None
    """From the birth of the ranks to their first step, in the newest attempt."""

    @property
    def typical(self) -> float:
        """The median of the recent steps; 0 while there are none."""
        return sorted(self.recent)[len(self.recent) // 2] if self.recent else 0.0

    def stepped(self, seconds: float, steps: int = 1) -> Pace:
        """With `steps` more steps, of `seconds` each."""
        slowest = max(seconds, self.slowest * FADE**steps)
        return replace(self, recent=(*self.recent, seconds)[-WINDOW:], slowest=slowest)

    def stayed(self, phase: str, seconds: float) -> Pace:
        """With a stay in `phase` that is over."""
        return replace(self, phases={**self.phases, phase: max(seconds, self.phases.get(phase, 0.0))})
