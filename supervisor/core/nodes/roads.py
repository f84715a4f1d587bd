"""The roads between the nodes of a run: which node can call which. Ranks of two nodes without a road cannot train."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

LONGEST = 8.0
"""Seconds after which a road of which nothing was heard counts as open: only a failure is a reason to wait."""

Road = tuple[int, int]
"""The node that calls, and the node that is called."""

Way = tuple[Road, str]
"""A road, and what has chosen the address that is called: "" for the node's own, else a setting of its ranks."""


@dataclass(frozen=True, slots=True)
class Roads:
    """What the nodes have told of their calls. Each of them calls all others, at each of their addresses."""

    since: Mapping[int, float] = field(default_factory=dict)
    """The nodes that call and are called, and when that began."""
    needed: Mapping[int, frozenset[str]] = field(default_factory=dict)
    """How a node must be reached by all others: its ranks are called at these addresses for certain."""
    waits: frozenset[Way] = frozenset()
    """The calls that matter and of which nothing was told yet."""
    failed: Mapping[Way, str] = field(default_factory=dict)
    """Why a call fails, each time."""

    @property
    def cut(self) -> dict[Road, str]:
        """The roads on which ranks cannot call each other, and why: of a node's own address first."""
        failed = sorted(self.failed.items(), reverse=True)
        return {road: why for (road, setting), why in failed if setting in self.needed[road[1]]}

    def joined(self, node: int, now: float, certain: frozenset[str] = frozenset()) -> Roads:
        """From now on that node calls all others, and they call it: at its own address, and as the settings in
        `certain` say. What was known of it before is void."""
        known = self.left(node)
        needed = {**known.needed, node: certain | {""}}
        new = {((node, other), setting) for other in known.since for setting in needed[other]}
        new |= {((other, node), setting) for other in known.since for setting in needed[node]}
        return Roads({**known.since, node: now}, needed, known.waits | new, known.failed)

    def left(self, node: int) -> Roads:
        """That node is away."""
        return Roads(
            {each: at for each, at in self.since.items() if each != node},
            {each: settings for each, settings in self.needed.items() if each != node},
            frozenset(way for way in self.waits if node not in way[0]),
            {way: why for way, why in self.failed.items() if node not in way[0]},
        )

    def told(self, road: Road, why: str, setting: str = "") -> Roads:
        """A call was answered, or failed twice, as `why` says. The word of a node that is away is void."""
        if not set(road) <= self.since.keys():
            return self
        failed = {way: text for way, text in self.failed.items() if way != (road, setting)}
        if why:
            failed[road, setting] = why
        return Roads(self.since, self.needed, self.waits - {(road, setting)}, failed)

    def untried(self, now: float) -> frozenset[Road]:
        """The roads of which nothing is known yet, and something may be soon."""
        return frozenset(road for road, _ in self.waits if now < max(self.since[each] for each in road) + LONGEST)


def together(nodes: Sequence[int], cut: Collection[Road], most: int) -> tuple[int, ...]:
    """The first `most` of `nodes` between which no road is cut. The first node is one of them. Those with the fewest
    cuts come before others."""
    among = [road for road in cut if set(road) <= set(nodes)]
    found: list[int] = []
    for node in [*nodes[:1], *sorted(nodes[1:], key=lambda each: sum(each in road for road in among))]:
        if len(found) < most and not any(road in among for other in found for road in ((node, other), (other, node))):
            found.append(node)
    return tuple(found)
