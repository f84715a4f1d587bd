"""One world of a run over several nodes: the truth about each node, what is on its way, and what the leader knows."""

from __future__ import annotations

import itertools
import marshal
from dataclasses import dataclass, field, replace
from typing import Any

from supervisor.core.machine import State
from supervisor.core.model import Policy
from supervisor.core.nodes.lease import Lease
from supervisor.core.nodes.membership import Membership

LEASE, MARGIN = 1.0, 1.0
POLICY = Policy(hang_timeout=float("inf"), startup_timeout=float("inf"), backoff=(0.0, 0.0), no_progress_limit=99)
Message = tuple[Any, ...]
Queues = tuple[tuple[int, tuple[Message, ...]], ...]
"""By link: what is under way, oldest first."""
TIMED = ("beat", "lease", "hello")
"""The messages that tell when something was sent."""
QUIET = ("gone", "closed", "leashed", "ended")
"""Those that the leader does not answer."""
GIVEN = ("lease", "wait")
"""Those that no follower answers."""
NODES = 10
"""More than there are; a link's number leaves its node's when it is divided by it."""
LEASH = 0
"""The number of the link that the ranks' own connections count as."""


@dataclass(frozen=True, slots=True)
class Follower:
    """The truth about one node."""

    node: int
    link: int = 0
    """The number of its newest link, by which that node is known; 0: none."""
    made: int = 0
    beaten: float = -1.0
    """When it has sent its last beat. Two at one time are as good as one."""
    lives: bool = True
    """Whether its supervisor does. Its ranks and its warden may outlive it."""
    lease: Lease = field(default_factory=Lease)
    runs: int = -1
    """The attempt of its ranks, or -1."""
    waits: tuple[int, ...] | None = None
    """The links of the group that waits there."""
    up: Queues = ()
    down: tuple[Message, ...] = ()
    """What is on its way on its link."""

    def says(self, *message: Any, link: int | None = None) -> Follower:
        number = self.link if link is None else link
        queues = dict(self.up)
        return replace(self, up=tuple(sorted({**queues, number: (*queues.get(number, ()), message)}.items())))

    def killed(self, leash: bool) -> Follower:
        """Its ranks are gone, and it says so if it can."""
        if self.runs < 0:
            return self
        dead = self.says("ended", self.runs, link=LEASH) if leash else self
        dead = replace(dead, runs=-1, lease=self.lease.clear())
        return dead.says("gone", self.runs) if self.lives and self.link else dead

    def cut(self, arrives: bool) -> Follower:
        """Its link is closed. What it had sent arrives, or not; what was sent to it does not."""
        queues = {link: queue for link, queue in self.up if arrives or link != self.link}
        closed = replace(self, up=tuple(sorted(queues.items()))).says("closed")
        return replace(closed, link=0, down=(), waits=None)


@dataclass(frozen=True, slots=True)
class World:
    now: float
    state: State
    known: Membership
    followers: tuple[Follower, ...]
    alive: bool = False
    """The leader's own ranks."""
    failed: bool = False
    """One of them has failed."""
    waits: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """(nodes, links) of the group that waits."""
    ended: bool = False
    cuts: int = 0
    crashes: int = 0
    fails: int = 0
    leads: int = 0
    """How many times the leader has begun anew."""
    told: frozenset[tuple[int, int, int]] = field(default_factory=frozenset)
    """(node, link, attempt) of the kills that were ordered."""

    def key(self) -> int:
        """Equal for worlds with the same future. Times are seconds from now, what is long ago is all the same, and only
        the order of a node's links counts. So there are finitely many worlds, however long they go on. And followers
        are as good as each other, so worlds that differ in their numbers alone are one.

        Of 64 bits: that two of a million worlds have the same one by chance has a probability of 3e-8.
        """
        at = (self.state.mode.value, self.state.attempt, self.state.verdict is None, self._when(self.state.due_since))
        bounds = (self.cuts, self.crashes, self.fails, self.leads)
        mine = (at, self.known.attempt, self.known.abandoned, self.alive, self.failed, self.ended, bounds)
        links = self._links()
        return min(
            hash(marshal.dumps((mine, self._seen_by(order, links)), 2))
            for order in itertools.permutations(self.followers)
        )

    def _seen_by(self, order: tuple[Follower, ...], links: dict[int, list[int]]) -> tuple[Any, ...]:
        """All that there is of each follower, in that order."""
        place = {f.node: at for at, f in enumerate(order)}
        names = {n: (place[node], at) for node, known in links.items() for at, n in enumerate(known)} | {0: (-1, 0)}

        def named(group: tuple[int, ...] | None) -> Any:
            return None if group is None else tuple(sorted(names[n] for n in group))

        # A group over links that are gone is never released.
        stands = self.waits is not None and self.waits[1] == self.known.links(self.waits[0])
        group = self.waits if stands else None

        def message(told: Message) -> Message:
            what, *rest = told
            if what in TIMED:
                # A lease from then is over.
                return (what, self._when(rest[0], -LEASE), *rest[1:])
            return (what, *(named(each) if isinstance(each, tuple) else each for each in rest))

        def of(f: Follower) -> tuple[Any, ...]:
            # How long a lease is over matters to ranks alone.
            lease = (self._when(f.lease.until, None if f.runs >= 0 else 0.0), f.lease.armed)
            up = tuple((names[link], tuple(map(message, queue))) for link, queue in f.up)
            used = f.waits is not None and ((group and f.waits == group[1]) or any(f.waits in m for m in f.down))
            waits = named(f.waits) if used else None
            down = tuple(map(message, f.down))
            return (names[f.link], f.beaten < self.now, f.lives, lease, f.runs, waits, up, down)

        def peer(node: int) -> tuple[Any, ...]:
            p, known = self.known.peers.get(node), self.known
            at = (node in known.members, node in known.gone, node in known.lost)
            if p is None:
                return at
            told = tuple(sorted(attempt for n, link, attempt in self.told if (n, link) == (node, p.link)))
            until = self._when(p.leased_until, -MARGIN - 1 if at == (True, False, False) else -1.0)
            leash = (len(p.leashed), len(p.ended))
            return (*at, p.ranks, names[p.link], p.linked, self.now > p.heard, until, p.has, leash, told)

        over = None if group is None else (tuple(sorted(place[n] for n in group[0] if n)), named(group[1]))
        return (over, *((peer(f.node), of(f)) for f in order))

    def _links(self) -> dict[int, list[int]]:
        """The links of each node that are of any interest, oldest first."""
        found = {f.node: {f.link, *(link for link, _ in f.up)} for f in self.followers}
        groups = [self.waits[1] if self.waits is not None else (), *(f.waits or () for f in self.followers)]
        groups += [each for f in self.followers for m in f.down for each in m if isinstance(each, tuple)]
        for link in itertools.chain(*groups, (p.link for p in self.known.peers.values())):
            if link:
                found[link % NODES].add(link)
        return {node: sorted(links - {0}) for node, links in found.items()}

    def _when(self, at: float | None, least: float | None = None) -> float | None:
        """Seconds from now; those below `least` are all the same."""
        return None if at is None else max(at - self.now, -LEASE - MARGIN - 1 if least is None else least)


def leading(queue: tuple[Message, ...], kinds: tuple[str, ...]) -> int:
    """How many messages of these kinds come first."""
    return next((n for n, message in enumerate(queue) if message[0] not in kinds), len(queue))
