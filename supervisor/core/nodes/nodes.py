"""The nodes of a run, as the leader sees them at one look, and those of the next attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.core.nodes.roads import Road, together

UNLUCKY = 2
"""A node that was lost this many times is the last choice."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node. "The attempt" is the one that runs, or ran last."""

    node: int
    host: str
    leads: bool = False
    """The leader's own. Its processes are seen directly, not by a link."""
    member: bool = False
    """It has, or had, a part of the attempt."""
    over: bool = False
    """Nothing of the attempt runs there any more: it has said so, or it is lost."""
    lost: str = ""
    """Why it counts as lost, with the evidence. A member that is lost stays so, whatever it says later."""
    since: float = 0.0
    """When it was last heard."""
    silent: bool = False
    """Nothing was heard for a moment, or its link is closed. It may be lost soon."""
    ready: bool = False
    """It is there, and holds nothing of any attempt. So it can be a member of the next one."""
    losses: int = 0
    """How many times it was lost."""

    @property
    def name(self) -> str:
        return f"node {self.node} ({self.host})" if self.host else f"node {self.node}"


@dataclass(frozen=True, slots=True)
class Nodes:
    """All nodes of a run, and how many of them an attempt needs."""

    least: int
    most: int
    wait: float
    """Seconds to wait for nodes that are missing."""
    views: tuple[NodeView, ...] = ()
    cut: Mapping[Road, str] = field(default_factory=dict)
    """The roads on which a call fails, and why."""
    untried: frozenset[Road] = frozenset()
    """Those of which nothing is known yet."""

    def unfenced(self) -> tuple[NodeView, ...]:
        """The members that may still run a part of the attempt. No other attempt may begin beside them."""
        return tuple(view for view in self.views if view.member and not view.leads and not view.over)

    def failed(self) -> NodeView | None:
        """The member that was lost first, else one that has given up its part. None if all are well."""
        over = [view for view in self.views if view.member and not view.leads and view.over]
        return min(over, key=lambda view: (not view.lost, view.since, view.node), default=None)

    def doubtful(self) -> bool:
        """Whether a member may be lost soon. What other ranks complain about meanwhile may be its doing."""
        return any(view.silent for view in self.unfenced())

    def chosen(self) -> tuple[int, ...]:
        """The nodes of the next attempt in the order of their ranks, the leader's own first. They may be too few.

        The members of the last attempt come first: they have the state in memory. A node that was lost twice comes
        last. All of them can call each other, as far as is known.
        """
        best = sorted(self._ready(), key=lambda v: (not v.leads, v.losses >= UNLUCKY, not v.member, v.node))
        found = set(together([view.node for view in best], self.cut, self.most))
        return tuple(view.node for view in sorted(best, key=lambda v: (not v.leads, v.node)) if view.node in found)

    def _ready(self) -> list[NodeView]:
        return [view for view in self.views if view.ready or view.leads]

    def unknown(self, nodes: tuple[int, ...]) -> bool:
        """Whether it is not known yet if these nodes can call each other."""
        return any(set(road) <= set(nodes) for road in self.untried)

    def apart(self) -> str:
        """Which nodes that are there cannot call each other, and why, for people; empty if all can."""
        names = {view.node: view.name for view in self._ready()}
        cut = [(road, why) for road, why in sorted(self.cut.items()) if set(road) <= names.keys()]
        return "; ".join(f"{names[caller]} cannot reach {names[node]} {why}" for (caller, node), why in cut)

    def missing(self) -> str:
        """What the run waits for, for people."""
        have = len(self._ready())
        want = str(self.least) if self.least == self.most else f"{self.least} to {self.most}"
        there = f"{min(have, self.most)} of {want} nodes {'is' if have == 1 else 'are'} there"
        return f"{there}, and {apart}" if (apart := self.apart()) else there
