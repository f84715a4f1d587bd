"""The roads between the nodes of a run: which node can call which. Ranks of two nodes without a road cannot train."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

LONGEST = 8.0
"""Seconds after which a road of which nothing was heard counts as open: only a failure is a reason to wait."""

Road = tuple[int, int]
"""The node that calls, and the node that is called."""


@dataclass(frozen=True, slots=True)
class Roads:
    """What the nodes have told of their calls. Each of them calls all others."""

    since: Mapping[int, float] = field(default_factory=dict)
    """The nodes that call and are called, and when that began."""
    waits: frozenset[Road] = frozenset()
    """The calls of which nothing was told yet."""
    cut: Mapping[Road, str] = field(default_factory=dict)
    """Why a call fails, each time."""

    def joined(self, node: int, now: float) -> Roads:
        """From now on that node calls all others, and they call it. What was known of it before is void."""
        known = self.left(node)
        new = {road for other in known.since for road in ((node, other), (other, node))}
        return Roads({**known.since, node: now}, known.waits | new, known.cut)

    def left(self, node: int) -> Roads:
        """That node is away."""
        return Roads(
            {each: at for each, at in self.since.items() if each != node},
            frozenset(road for road in self.waits if node not in road),
            {road: why for road, why in self.cut.items() if node not in road},
        )

    def told(self, road: Road, why: str) -> Roads:
        """A call was answered, or failed twice, as `why` says. The word of a node that is away is void."""
        if not set(road) <= self.since.keys():
            return self
        cut = {each: text for each, text in self.cut.items() if each != road}
        return Roads(self.since, self.waits - {road}, {**cut, road: why} if why else cut)

    def untried(self, now: float) -> frozenset[Road]:
        """The roads of which nothing is known yet, and something may be soon."""
        return frozenset(road for road in self.waits if now < max(self.since[each] for each in road) + LONGEST)


def together(nodes: Sequence[int], cut: Collection[Road], most: int) -> tuple[int, ...]:
    """The first `most` of `nodes` between which no road is cut. The first node is one of them. Those with the fewest
    cuts come before others."""
    among = [road for road in cut if set(road) <= set(nodes)]
    found: list[int] = []
    for node in [*nodes[:1], *sorted(nodes[1:], key=lambda each: sum(each in road for road in among))]:
        if len(found) < most and not any(road in among for other in found for road in ((node, other), (other, node))):
            found.append(node)
    return tuple(found)
