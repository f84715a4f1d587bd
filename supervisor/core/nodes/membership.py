"""What the leader knows of its followers: who is linked, who has a part of the attempt, and who surely has none.

    it says hello without the attempt, or tells that its part is gone       its part is over
    its link is closed, and every one of its ranks has ended (leashes)      lost
    the longest lease that it was ever granted is over, plus MARGIN         lost

A lease counts from when the follower SENT the beat that was answered, so it ends there before it ends here. Within
MARGIN after its end the follower or its warden has killed its ranks. So nothing of the attempt runs on a node that is
lost, and a node that was lost stays lost for that attempt, whatever it says later. Times are seconds of the leader's
clock that counts the sleep of the machine, too (CLOCK_BOOTTIME).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from supervisor.core.nodes.nodes import Nodes, NodeView

MARGIN = 0.3
"""Seconds after the end of a lease in which the ranks are killed. The clocks of two nodes may differ in rate, too."""
DOUBT = 0.5
"""Seconds of silence after which a node may be lost soon. Beats come every 0.2 s."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One follower."""

    node: int
    host: str = ""
    ranks: int = 0
    """The number of its ranks, if it is a member."""
    link: int = 0
    """The number of its newest link."""
    linked: bool = False
    heard: float = float("-inf")
    leased_until: float = float("-inf")
    """The end of the longest lease that it may hold."""
    has: int | None = None
    """The attempt of which it may have processes."""
    losses: int = 0
    leashed: frozenset[int] = frozenset()
    """Its ranks of the attempt that have a connection of their own, or had one."""
    ended: frozenset[int] = frozenset()
    """Those of them whose process is gone, as far as their connections tell."""
    replaced: frozenset[int] = frozenset()
    """Those of them that live on as another program, by exec, which has no such connection."""


@dataclass(frozen=True, slots=True)
class Membership:
    """All followers, and the members of the attempt that runs or ran last."""

    local: int
    """The leader's own node."""
    host: str = ""
    attempt: int = -1
    members: tuple[int, ...] = ()
    """In the order of their ranks."""
    abandoned: bool = False
    """It is that of a leader that is dead. Nothing of it may go on."""
    peers: Mapping[int, Peer] = field(default_factory=dict)
    gone: frozenset[int] = frozenset()
    """The members whose part is over, by their own word."""
    lost: Mapping[int, str] = field(default_factory=dict)
    """The members that are lost, and why."""

    @classmethod
    def begin(
        cls, local: int, host: str, attempt: int, members: Mapping[int, str], now: float, lease: float
    ) -> Membership:
        """The state of a leader that has just begun. `attempt` was the last one (-1: none), `members` its nodes with
        their hosts. The dead leader may have granted a lease of at most `lease` seconds until now."""
        peers = {
            node: Peer(node, name, heard=now, leased_until=now + lease, has=attempt)
            for node, name in members.items()
            if node != local
        }
        return cls(local, host, attempt, tuple(members), True, peers)

    def joined(self, node: int, host: str, link: int, attempt: int | None, now: float, lease: float) -> Membership:
        """The follower `node` has said hello on a link. Links are numbered in the order in which they came. `attempt`
        is the one of which it has processes now, if any. The first beat may be granted a lease of `lease` seconds."""
        peer = self.peers.get(node, Peer(node))
        if link <= peer.link:
            return self  # Its hello was read late: a newer link has said hello since.
        until = max(peer.leased_until, now + lease)
        peer = replace(peer, host=host, link=link, linked=True, heard=now, leased_until=until, has=attempt)
        known = self._with(peer)
        # Whoever has nothing of the attempt has lost, or never got, its part. What was sent on the old link is void.
        return known if attempt == self.attempt else known._over(node)

    def heard(self, node: int, link: int, at: float, leased_until: float) -> Membership:
        """A beat of the follower was read at the time `at`, and answered with a lease until then."""
        peer = self._on(node, link)
        if peer is None:
            return self
        until = max(peer.leased_until, leased_until)
        return self._with(replace(peer, heard=max(peer.heard, at), leased_until=until))

    def closed(self, node: int, link: int) -> Membership:
        """That link of the follower is closed."""
        peer = self._on(node, link)
        return self if peer is None else self._with(replace(peer, linked=False))

    def leash(self, node: int, attempt: int, rank: int, ended: bool) -> Membership:
        """A rank of that attempt has its own connection, or (`ended`) its process is gone."""
        peer = self.peers.get(node)
        if peer is None or attempt != self.attempt or node not in self.members:
            return self
        leashed = peer.leashed | {rank}
        return self._with(replace(peer, leashed=leashed, ended=peer.ended | {rank} if ended else peer.ended))

    def replaced(self, node: int, attempt: int, ranks: frozenset[int]) -> Membership:
        """These ranks of that attempt have become other programs: the end of their connections proves nothing."""
        peer = self.peers.get(node)
        if peer is None or attempt != self.attempt or ranks <= peer.replaced:
            return self
        return self._with(replace(peer, replaced=peer.replaced | ranks))

    def told_gone(self, node: int, link: int, attempt: int) -> Membership:
        """The follower says that nothing of that attempt runs there any more."""
        peer = self._on(node, link)
        if peer is None:
            return self
        known = self._with(replace(peer, has=None)) if peer.has == attempt else self
        return known._over(node) if attempt == self.attempt else known

    def launched(self, attempt: int, nodes: tuple[int, ...], ranks: Mapping[int, int]) -> Membership:
        """The attempt has begun: each of `nodes` was sent its order on its link of now. `ranks` are their numbers of
        ranks."""
        peers = dict(self.peers)
        for node in nodes:
            if node in peers:
                none = frozenset[int]()
                peer = replace(peers[node], ranks=ranks[node], has=attempt)
                peers[node] = replace(peer, leashed=none, ended=none, replaced=none)
        return replace(self, attempt=attempt, members=nodes, abandoned=False, peers=peers, gone=frozenset(), lost={})

    def looked(self, now: float, margin: float = MARGIN) -> Membership:
        """As of `now`: members without a lease, or without a link and a living rank, are lost."""
        known = self
        for node in self.members:
            peer = self.peers.get(node)
            if peer is None or node in self.gone or node in self.lost:
                continue
            if why := _why_lost(peer, now, margin):
                known = replace(known, lost={**known.lost, node: why})._with(replace(peer, losses=peer.losses + 1))
        return known

    def nodes(self, least: int, most: int, wait: float, now: float) -> Nodes:
        """The look at `now`. An attempt has `least` to `most` nodes, and missing ones are waited for, `wait` seconds at
        most."""
        own = NodeView(self.local, self.host, leads=True, member=self.local in self.members, since=now, ready=True)
        others = (self._view(peer, now) for peer in self.peers.values() if peer.node != self.local)
        return Nodes(least, most, wait, tuple(sorted((own, *others), key=lambda view: view.node)))

    def links(self, nodes: tuple[int, ...]) -> tuple[int, ...]:
        """The numbers of the links of these nodes; 0 for one that has none. A group that waits over these nodes is void
        once they change."""
        found = (self.peers.get(node) for node in nodes if node != self.local)
        return tuple(peer.link if peer is not None and peer.linked else 0 for peer in found)

    def is_linked(self, node: int) -> bool:
        """Whether that follower has a link now."""
        return node in self.peers and self.peers[node].linked

    def may_run(self, node: int) -> bool:
        """Whether that node may run a part of the attempt."""
        return node in self.members and node not in self.lost and node not in self.gone

    def stale(self) -> tuple[tuple[int, int], ...]:
        """(node, attempt) that must be killed there: its followers are linked, and it is not part of what runs."""
        return tuple(
            (peer.node, peer.has)
            for peer in self.peers.values()
            if peer.linked and peer.has is not None and not self._takes_part(peer)
        )

    def _takes_part(self, peer: Peer) -> bool:
        return self.may_run(peer.node) and peer.has == self.attempt and not self.abandoned

    def _view(self, peer: Peer, now: float) -> NodeView:
        member = peer.node in self.members
        return NodeView(
            peer.node,
            peer.host,
            member=member,
            over=member and (peer.node in self.gone or peer.node in self.lost),
            lost=self.lost.get(peer.node, "") if member else "",
            since=peer.heard,
            silent=not peer.linked or now > peer.heard + DOUBT,
            ready=peer.linked and peer.has is None and now <= peer.leased_until,
            losses=peer.losses,
        )

    def _over(self, node: int) -> Membership:
        if node not in self.members or node in self.lost:
            return self
        return replace(self, gone=self.gone | {node})

    def _on(self, node: int, link: int) -> Peer | None:
        """The follower, if that is its newest link."""
        peer = self.peers.get(node)
        return peer if peer is not None and peer.link == link and peer.linked else None

    def _with(self, peer: Peer) -> Membership:
        return replace(self, peers={**self.peers, peer.node: peer})


def _why_lost(peer: Peer, now: float, margin: float) -> str:
    """Why nothing of the attempt can run on that node any more. Empty if something can."""
    silent = f"nothing was heard of it for {now - peer.heard:.1f} s"
    if not peer.linked and peer.ranks and len(peer.ended - peer.replaced) == peer.ranks:
        ranks = "its rank is" if peer.ranks == 1 else f"its {peer.ranks} ranks are"
        return f"its connection is closed, and {ranks} gone"
    if now > peer.leased_until + margin:
        return silent if peer.linked else f"its connection is closed, and {silent}"
    return ""
