"""The lease of a follower: until when its ranks may run. It counts from when the answered beat was SENT.

    no ranks     a grant moves the end; ranks may be launched while there is a lease
    ranks        a grant moves the end, as long as the lease has not run out
    fenced       the lease has run out while there were ranks: they are killed. No grant helps, until they are gone

`--lease auto` begins with three seconds, and comes down to one by the gaps between the beats that were seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

BEAT = 0.2
"""Seconds between two beats."""
SHORTEST, LONGEST = 1.0, 3.0
"""The bounds of an automatic lease, in seconds."""
FACTOR = 3.0
"""A lease lasts this many times the longest gap that was seen."""
LEARNED = 60.0
"""Seconds of beats before a lease is made shorter."""
_BUCKET, _BUCKETS = 10.0, 30
"""Gaps are remembered for five minutes."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Times are seconds of the follower's clock that counts the sleep of the machine, too."""

    until: float = float("-inf")
    armed: bool = False
    """There may be ranks."""

    def granted(self, sent: float, length: float, now: float) -> Lease:
        """The beat that was sent at that time was answered with a lease of `length` seconds."""
        return self if self.fenced(now) else replace(self, until=max(self.until, sent + length))

    def arm(self, now: float) -> Lease:
        """From now on there may be ranks. ValueError without a lease."""
        if now >= self.until:
            raise ValueError("this node has no lease")
        return replace(self, armed=True)

    def clear(self) -> Lease:
        """There are no ranks any more."""
        return replace(self, armed=False)

    def fenced(self, now: float) -> bool:
        """Whether the ranks must be killed."""
        return self.armed and now >= self.until


@dataclass(frozen=True, slots=True)
class Gaps:
    """The longest gaps of the last minutes: seconds from a beat that was answered to the next answer."""

    began: float | None = None
    worst: tuple[tuple[float, float], ...] = ()
    """(when it began, longest gap) of each ten seconds, oldest first."""

    def seen(self, gap: float, now: float) -> Gaps:
        """A gap that ended at `now`."""
        began = now if self.began is None else self.began
        *older, (at, longest) = self.worst or ((now, 0.0),)
        newest = [(at, max(longest, gap))] if now < at + _BUCKET else [(at, longest), (now, gap)]
        return Gaps(began, tuple([*older, *newest][-_BUCKETS:]))

    def length(self, now: float) -> float:
        """The seconds of an automatic lease."""
        if self.began is None or now < self.began + LEARNED:
            return LONGEST
        return min(LONGEST, max(SHORTEST, FACTOR * max(gap for _, gap in self.worst)))
