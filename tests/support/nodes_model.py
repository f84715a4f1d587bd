"""A model of a run over several nodes: the real core of the leader, the real lease of each follower, and between them
links that may be cut, messages that may be late, and supervisors that may die. Every step is one event of one of them.

What is assumed: messages of one link come in order or not at all; those of two links come in any order; and a node
whose lease has run out has killed its ranks within MARGIN (the follower, or its warden). Time goes in whole units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from supervisor.core import machine
from supervisor.core.actions import End, Launch, Send
from supervisor.core.machine import Mode, State
from supervisor.core.model import Exit, History, Observation, Policy
from supervisor.core.nodes.lease import Lease
from supervisor.core.nodes.membership import Membership

LEASE, MARGIN = 1.0, 1.0
POLICY = Policy(hang_timeout=float("inf"), startup_timeout=float("inf"), backoff=(0.0, 0.0), no_progress_limit=99)
Message = tuple[Any, ...]
Queues = tuple[tuple[int, tuple[Message, ...]], ...]
"""By link: what is under way, oldest first."""
TIMED = ("beat", "lease", "hello")
"""The messages that tell when something was sent."""
LEASH = 0
"""The number of the link that the ranks' own connections count as."""


@dataclass(frozen=True, slots=True)
class Follower:
    """The truth about one node."""

    node: int
    link: int = 0
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
    links: int = 0
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

    def key(self) -> tuple[Any, ...]:
        """Equal for worlds with the same future. Times are seconds from now, and what is long ago is all the same. So
        there are finitely many worlds, however long they go on."""
        state, known = self.state, self.known
        at = (state.mode, state.attempt, state.verdict is None, self._when(state.due_since))
        peers = tuple(
            (
                p.node,
                p.ranks,
                p.link,
                p.linked,
                self.now > p.heard,
                self._when(p.leased_until),
                p.has,
                p.leashed,
                p.ended,
            )
            for p in known.peers.values()
        )
        members = (known.attempt, known.members, known.gone, frozenset(known.lost), peers)
        current = frozenset(order for order in self.told if known.peers[order[0]].link == order[1])
        mine = (self.alive, self.failed, self.links, self.waits, self.ended, current)
        return (
            at,
            members,
            mine,
            tuple(map(self._of, self.followers)),
            self.cuts,
            self.crashes,
            self.fails,
            self.leads,
        )

    def _when(self, at: float | None) -> float | None:
        return None if at is None else max(at - self.now, -LEASE - MARGIN - 1)

    def _of(self, f: Follower) -> tuple[Any, ...]:
        lease = (self._when(f.lease.until), f.lease.armed)
        up = tuple((link, tuple(map(self._message, queue))) for link, queue in f.up)
        return (f.link, f.beaten < self.now, f.lives, lease, f.runs, f.waits, up, tuple(map(self._message, f.down)))

    def _message(self, message: Message) -> Message:
        return (message[0], self._when(message[1]), *message[2:]) if message[0] in TIMED else message


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
        """All that may happen next, with a name for each."""
        if world.ended or world.state.attempt > self.attempts:
            return
        yield "look", self.look(world)
        if world.alive and not world.failed and world.fails < self.fails:
            yield "fail", replace(world, failed=True, fails=world.fails + 1)
        if world.leads < self.leads:
            yield "lead", self.lead(world)
        if not any(self.must_fence(f, world.now + 1) for f in world.followers):
            yield "tick", replace(world, now=world.now + 1)
        for at, follower in enumerate(world.followers):
            for name, after in self.of(world, follower):
                yield f"{name} {follower.node}", self.with_(after, at)

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
            linked = replace(f, link=world.links + 1)
            has = f.runs if f.runs >= 0 else None
            yield "link", (replace(world, links=world.links + 1), linked.says("hello", world.now, has))
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

    def settles(self, world: World, known: set[Any], rounds: int = 30) -> bool:
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


@dataclass
class Explored:
    worlds: int = 0
    launches: int = 0
    """Those of a second attempt or a later one."""
    trace: tuple[str, ...] = ()
    fault: str = ""


def explore(model: Model, settles: int = 1, most: int | None = None) -> Explored:
    """Every world that can be reached, breadth first, or the `most` that are reached first. The fault is the first one
    found, with the steps to it. One world of `settles` must settle, too (0: none)."""
    first = model.begin()
    parents: dict[Any, tuple[Any, str]] = {first.key(): (None, "")}
    layer, found, well = [first], Explored(), set[Any]()

    def trace(key: Any) -> tuple[str, ...]:
        names: list[str] = []
        while key is not None:
            key, name = parents[key]
            names.append(name)
        return tuple(reversed(names[:-1]))

    while layer:
        following = []
        for world in layer:
            found.worlds += 1
            key = world.key()
            try:
                if settles and found.worlds % settles == 0 and not model.settles(world, well):
                    found.trace, found.fault = trace(key), "it never settles"
                    return found
                for name, after in model.steps(world):
                    again = after.key()
                    if again not in parents:
                        parents[again] = (key, name)
                        following.append(after)
                        found.launches += after.state.attempt > max(0, world.state.attempt)
            except Overlap as fault:
                found.trace, found.fault = (*trace(key), "look"), str(fault)
                return found
        layer = following if most is None or found.worlds < most else []
    return found
