"""An order to go back: which saved states an attempt may not go on from, and which data it passes over.

attempt 0   … 18 19 20 21:NaN      order 0:21:24      attempts after 0: nothing of attempt 0 from step 21 on,
                                                      and from what is left (20, say) past the data 20 21 22 23
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rollback:
    """What attempts up to `attempt` saved of step `before` and later is not for those after it, and data up to index
    `skip_to` is passed over by whoever goes on from a state of theirs."""

    attempt: int
    before: int
    skip_to: int

    def covers(self, attempt: int | None, step: int) -> bool:
        """Whether the state that `attempt` saved of `step` is one of those to go back from."""
        return self.is_old(attempt) and step >= self.before

    def is_old(self, attempt: int | None) -> bool:
        """Whether `attempt` knew nothing of this order."""
        return attempt is None or attempt <= self.attempt

    def encode(self) -> str:
        return f"{self.attempt}:{self.before}:{self.skip_to}"


def decode(text: str) -> Rollback | None:
    """The order that `text` is, or None for the empty one and for what is none."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.lstrip("-").isdecimal() for part in parts):
        return None
    return Rollback(*map(int, parts))
