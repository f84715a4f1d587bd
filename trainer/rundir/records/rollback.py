"""An order to go back: the saved states that an attempt may not resume from, and the data that it skips.

attempt 0   … 18 19 20 21:NaN      order 0:21:24      attempts after 0: nothing of attempt 0 from step 21 on,
                                                      and after a state that is left (20, say) skip data 20 21 22 23
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rollback:
    """Later attempts may not use states that attempts up to `attempt` saved at step `before` or later. If they resume
    from another state of those attempts, they skip the data up to index `skip_to`."""

    attempt: int
    before: int
    skip_to: int

    def covers(self, attempt: int | None, step: int) -> bool:
        """Whether the order forbids the state that `attempt` saved at `step`."""
        return self.is_old(attempt) and step >= self.before

    def is_old(self, attempt: int | None) -> bool:
        """Whether `attempt` knew nothing of this order."""
        return attempt is None or attempt <= self.attempt

    def encode(self) -> str:
        return f"{self.attempt}:{self.before}:{self.skip_to}"


def decode(text: str) -> Rollback | None:
    """The order in `text`. None if `text` is empty or no order."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.lstrip("-").isdecimal() for part in parts):
        return None
    return Rollback(*map(int, parts))
