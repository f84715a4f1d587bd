"""A model of a run over several nodes: the real core of the leader, the real lease of each follower, and between them
links that may be cut, messages that may be late, and supervisors that may die. Every step is one event of one of them.

What is assumed: messages of one link come in order or not at all; those of two links come in any order; and a node
whose lease has run out has killed its ranks within MARGIN (the follower, or its warden). Time goes in whole units.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from supervisor.core import machine
from supervisor.core.actions import End, Launch, Send
from supervisor.core.machine import Mode
from supervisor.core.model import Exit, History, Observation
from supervisor.core.nodes.lease import Lease
from supervisor.core.nodes.membership import Membership
from tests.support.nodes_world import (
    GIVEN,
    LEASE,
    LEASH,
    MARGIN,
    NODES,
    POLICY,
    QUIET,
    Follower,
    Message,
    World,
    leading,
)


class Overlap(AssertionError):
    """Two attempts at once."""


@dataclass(frozen=True)
class Model:
    """The steps from one world to the next. The methods that carry a rule are replaced one by one in a test of the
    checker itself."""

    nodes: int = 2
    least: int = 1
    wait: float = 3.0
    cuts: int = 0
    crashes: int = 0
    fails: int = 0
    leads: int = 0
    leashes: bool = False
    attempts: int = 1
    """Nothing is followed beyond the launch of the next one."""

    def begin(self) -> World:
        """All followers have just started; nothing runs."""
        followers = tuple(Follower(node) for node in range(1, self.nodes))
        known = Membership.begin(0, "leader", -1, {}, 0.0, LEASE)
        return World(0.0, machine.begin(-1, History()), known, followers)

    # ── what may happen ─────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        """All that may happen next, with a name for each. What is seen by nobody yet has no step of its own: what the
        leader has read shows at its next look, and a lease that was heard when time passes or the link is cut. So it
        happens there, as much of it as may have happened by then."""
        if world.ended or world.state.attempt > self.attempts:
            return
        for read in self.all_followers(world, self.read):
            yield "look", self.look(read)
        if world.alive and not world.failed and world.fails < self.fails:
            yield "fail", replace(world, failed=True, fails=world.fails + 1)
        if world.leads < self.leads:
            for took in self.all_followers(world, self.took):
                yield "lead", self.lead(took)
        for took in self.all_followers(world, self.took):
            if not any(self.must_fence(f, took.now + 1) for f in took.followers):
                yield "tick", replace(took, now=took.now + 1)
        for at, follower in enumerate(world.followers):
            for name, after in self.changes(world, follower):
                yield f"{name} {follower.node}", self.with_(after, at)

    def all_followers(self, world: World, choices: Any) -> Iterator[World]:
        """The worlds after any one of the choices of each follower."""
        worlds = [world]
        for at in range(len(world.followers)):
            worlds = [self.with_(each, at) for w in worlds for each in choices(w, w.followers[at])]
        return iter(worlds)

    def read(self, world: World, f: Follower) -> Iterator[tuple[World, Follower]]:
        """What the leader may have read of that follower by now, but for what it answers."""
        heads = [leading(queue, QUIET) for _, queue in f.up]
        for counts in itertools.product(*(range(n + 1) for n in heads)):
            yield self.delivered(world, f, dict(zip((link for link, _ in f.up), counts, strict=True)))

    def delivered(self, world: World, f: Follower, counts: dict[int, int]) -> tuple[World, Follower]:
        """The leader has heard so many messages of each link."""
        for link, count in counts.items():
            for _ in range(count):
                queues = dict(f.up)
                message, *rest = queues[link]
                queues[link] = tuple(rest)
                f = replace(f, up=tuple(sorted((n, q) for n, q in queues.items() if q)))
                world, f = self.deliver(world, f, link, message)
        return world, f

    def took(self, world: World, f: Follower) -> Iterator[tuple[World, Follower]]:
        """The leases that a follower may have heard of by now."""
        yield world, f
        for _ in range(leading(f.down, GIVEN) if f.lives and f.link else 0):
            f = self.hear(f, world.now)
            yield world, f

    def changes(self, world: World, f: Follower) -> Iterator[tuple[str, tuple[World, Follower]]]:
        """What may happen at one follower, or to what it has sent."""
        *_, (_, heard) = self.took(world, f)
        for name, after in self.of(world, heard):
            if name in ("hear", "beat"):
                yield name, after
        for name, after in self.of(world, f):
            if name in ("link", "restart", "fence"):
                yield name, after
        if f.lives and (world.cuts < self.cuts or world.crashes < self.crashes):
            for (_, took), (seen, read) in itertools.product(self.took(world, f), self.read(world, f)):
                both = replace(took, up=read.up)
                yield from ((n, a) for n, a in self.of(seen, both) if n in ("cut", "lose", "crash"))
        for link, queue in f.up:
            head = leading(queue, QUIET)
            if head < len(queue):
                others = replace(f, up=tuple((n, q) for n, q in f.up if n != link))
                for seen, read in self.read(world, others):
                    whole = replace(read, up=tuple(sorted((*read.up, (link, queue)))))
                    yield f"deliver {queue[head][0]}", self.delivered(seen, whole, {link: head + 1})

    @staticmethod
    def with_(change: tuple[World, Follower], at: int) -> World:
        world, follower = change
        return replace(world, followers=(*world.followers[:at], follower, *world.followers[at + 1 :]))

    def of(self, world: World, f: Follower) -> Iterator[tuple[str, tuple[World, Follower]]]:
        """What may happen at one follower."""
        if f.lives and f.link:
            if f.down:
                yield "hear", (world, self.hear(f, world.now))
            elif f.beaten < world.now and not any(m[0] == "beat" for n, q in f.up if n == f.link for m in q):
                yield "beat", (world, replace(f.says("beat", world.now), beaten=world.now))
            if world.cuts < self.cuts:
                cut = replace(world, cuts=world.cuts + 1)
                yield "cut", (cut, f.cut(arrives=True))
                yield "lose", (cut, f.cut(arrives=False))
        elif f.lives:
            made = f.made + NODES
            linked = replace(f, link=made + f.node, made=made)
            has = f.runs if f.runs >= 0 else None
            yield "link", (world, linked.says("hello", world.now, has))
        else:
            # It clears what is left of the one before it, and begins without a lease.
            yield "restart", (world, replace(f.killed(self.leashes), lives=True, lease=Lease()))
        if f.lives and world.crashes < self.crashes:
            gone = f.cut(arrives=True) if f.link else f
            yield "crash", (replace(world, crashes=world.crashes + 1), replace(gone, lives=False))
        if f.runs >= 0 and f.lease.fenced(world.now):
            yield "fence", (world, f.killed(self.leashes))
        for link, queue in f.up:
            if queue:
                rest = {**dict(f.up), link: queue[1:]}
                heard = replace(f, up=tuple(sorted((n, q) for n, q in rest.items() if q)))
                yield f"deliver {queue[0][0]}", self.deliver(world, heard, link, queue[0])

    @staticmethod
    def must_fence(f: Follower, now: float) -> bool:
        """Whether its ranks would outlive their lease by more than MARGIN."""
        return f.runs >= 0 and now > f.lease.until + MARGIN

    # ── a follower ──────────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, f: Follower, now: float) -> Follower:
        """It obeys the next message."""
        (what, *rest), f = f.down[0], replace(f, down=f.down[1:])
        if what == "lease":
            return replace(f, lease=self.granted(f.lease, rest[0], now))
        if what == "wait":
            return replace(f, waits=rest[0])
        if what == "kill":
            return f.killed(self.leashes) if f.runs == rest[0] else f.says("gone", rest[0])
        attempt, group = rest
        if group is not None and f.waits != group:
            return f  # Nobody waits there: nothing happens.
        if f.runs >= 0 or now >= f.lease.until:
            return f.says("gone", attempt)
        f = replace(f, lease=f.lease.arm(now), runs=attempt, waits=None)
        return f.says("leashed", attempt, link=LEASH) if self.leashes else f

    def granted(self, lease: Lease, sent: float, now: float) -> Lease:
        return lease.granted(sent, LEASE, now)

    # ── the leader ──────────────────────────────────────────────────────────────────────────────────────────────────

    def deliver(self, world: World, f: Follower, link: int, message: Message) -> tuple[World, Follower]:
        """The leader hears the next message of a link."""
        known, (what, *rest) = world.known, message
        if what == "hello":
            known = self.joined(known, f.node, link, rest[1], world.now)
            if known.peers[f.node].link == link:
                f = self.sent(f, link, "lease", rest[0])
        elif what == "beat":
            peer = known.peers.get(f.node)
            if peer is not None and peer.link == link and peer.linked:
                known = known.heard(f.node, link, world.now, world.now + LEASE)
                f = self.sent(f, link, "lease", rest[0])
        elif what == "gone":
            known = known.told_gone(f.node, link, rest[0])
        elif what == "closed":
            known = known.closed(f.node, link)
        elif what == "leashed":
            known = known.leash(f.node, rest[0], f.node, ended=False)
        elif what == "ended":
            known = known.leash(f.node, rest[0], f.node, ended=True)
        return replace(world, known=known), f

    def joined(self, known: Membership, node: int, link: int, attempt: int | None, now: float) -> Membership:
        return known.joined(node, "", link, attempt, now, LEASE)

    @staticmethod
    def sent(f: Follower, link: int, *message: Any) -> Follower:
        """What the leader sends on a link that is closed there does not arrive."""
        return replace(f, down=(*f.down, message)) if link == f.link else f

    def look(self, world: World) -> World:
        """The leader looks and acts."""
        known = self.looked(world.known, world.now)
        seen = Observation(
            world.now,
            exits=(Exit(0, -9, world.now),) if world.failed else (),
            alive=(1,) if world.alive else (),
            nodes=known.nodes(self.least, self.nodes, self.wait, world.now),
        )
        state, actions = machine.step(POLICY, world.state, seen)
        assert state.next_at <= world.now
        world = replace(world, state=state, known=known)
        for action in actions:
            if isinstance(action, Launch):
                world = self.launch(world, action)
            elif isinstance(action, Send):
                world = replace(world, alive=False)
                world = self.order_kills(world, [(n, known.attempt) for n in known.members if n])
            elif isinstance(action, End):
                world = replace(world, ended=True)
        world = self.order_kills(world, world.known.stale())
        return self.order_group(world)

    def looked(self, known: Membership, now: float) -> Membership:
        return known.looked(now, MARGIN)

    def order_kills(self, world: World, stale: Any) -> World:
        for node, attempt in stale:
            peer = world.known.peers[node]
            if peer.linked and (node, peer.link, attempt) not in world.told:
                world = replace(world, told=world.told | {(node, peer.link, attempt)})
                world = self.with_((world, self.sent(world.followers[node - 1], peer.link, "kill", attempt)), node - 1)
        return world

    def order_group(self, world: World) -> World:
        """The next group waits over the nodes of the attempt, once that runs."""
        nodes = world.known.members
        if world.state.mode is not Mode.RUNNING or self.stands(world, nodes):
            return world
        links = world.known.links(nodes)
        if not all(links):
            return world
        for node in nodes:
            if node:
                link = world.known.peers[node].link
                world = self.with_((world, self.sent(world.followers[node - 1], link, "wait", links)), node - 1)
        return replace(world, waits=(nodes, links))

    def stands(self, world: World, nodes: tuple[int, ...]) -> bool:
        """Whether a group waits over these nodes."""
        return world.waits == (nodes, world.known.links(nodes))

    def launch(self, world: World, action: Launch) -> World:
        for f in world.followers:
            if f.runs >= 0:
                raise Overlap(f"attempt {action.attempt} begins, and node {f.node} runs attempt {f.runs}")
        group = world.waits[1] if world.waits is not None and self.stands(world, action.nodes) else None
        known = world.known.launched(action.attempt, action.nodes, dict.fromkeys(action.nodes, 1))
        world = replace(world, known=known, alive=True, failed=False, waits=None)
        for node in action.nodes:
            if node:
                link = known.peers[node].link
                order = self.sent(world.followers[node - 1], link, "launch", action.attempt, group)
                world = self.with_((world, order), node - 1)
        return world

    def lead(self, world: World) -> World:
        """The leader dies and begins anew, on the same node. Its own ranks are gone, and it knows the members."""
        members = dict.fromkeys(world.known.members, "")
        attempt = world.state.attempt
        known = Membership.begin(0, "leader", attempt, members, world.now, LEASE)
        followers = tuple(replace(f.cut(arrives=False), up=()) for f in world.followers)
        state = machine.begin(attempt, History())
        return replace(
            world, known=known, state=state, followers=followers, alive=False, failed=False, waits=None,
            leads=world.leads + 1, told=frozenset(),
        )  # fmt: skip

    # ── a fair future ───────────────────────────────────────────────────────────────────────────────────────────────

    def settles(self, world: World, known: set[int], rounds: int = 30) -> bool:
        """Whether, once nothing fails any more and everybody does its part, an attempt runs on all its nodes, or the
        run ends. `known`: the keys of worlds that do; it grows."""
        path = []
        for _ in range(rounds):
            key = world.key()
            if key in known or world.ended or self.is_well(world):
                known.update(path)
                return True
            path.append(key)
            world = self.fair(world)
        return False

    @staticmethod
    def is_well(world: World) -> bool:
        runs = {f.node for f in world.followers if f.runs == world.state.attempt}
        members = {node for node in world.known.members if node}
        calm = not any(f.down or f.up for f in world.followers)
        return world.state.mode is Mode.RUNNING and not world.failed and runs == members and calm

    def fair(self, world: World) -> World:
        """Half a unit of time, in which everybody does all that it can: so a lease is renewed before it is over."""
        for _ in range(3):
            for at in range(len(world.followers)):
                for wanted in ("restart", "link", "fence", "deliver", "hear", "beat", "deliver", "hear"):
                    while True:
                        f = world.followers[at]
                        found = [c for name, c in self.of(world, f) if name.startswith(wanted)]
                        if not found:
                            break
                        world = self.with_(found[0], at)
                        if wanted in ("beat", "link", "restart", "fence"):
                            break
            world = self.look(world)
        return replace(world, now=world.now + 0.5)
