"""Up to how many nodes, and how bad a network, the leases are right for: a simulation of leader, followers and links.

The leader's decisions are the real ones (supervisor/core: membership, lease, machine); time, links and processes are
simulated. Nothing is measured here but the model, whose assumptions are:

    link        one way: lognormal, median 0.2 ms, sigma 0.5. A lost packet comes again after 0.2 s, then twice that
                (TCP's shortest time-out, and no fast retransmission), and what follows it waits
    pause       of each supervisor's thread: every 120 s (Poisson), Pareto from 20 ms with alpha 1.5, at most 5 s
    clock       of each node: up to 50 ppm fast or slow
    rack        16 nodes: its links stop every 2 h (Poisson) for 0.5 s (exponential)
    kill        a warden or supervisor has killed its ranks 0.02 to 0.15 s after the end of the lease

python benchmarks/nodes_simulated.py [--hours 20] [--seed 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from links_simulated import OUTAGE, OUTAGE_EVERY, RACK, Pauses, Way, curve

from supervisor.core import machine
from supervisor.core.actions import Launch, Send
from supervisor.core.model import History, Observation, Policy
from supervisor.core.nodes.lease import BEAT, Lease
from supervisor.core.nodes.membership import MARGIN, Membership

DRIFT = 50e-6
KILL = (0.02, 0.15)
LOSSES = (0.0, 0.01, 0.05, 0.1, 0.2)
NODES = (8, 32, 64, 128)
BACK = 20.0
"""Seconds after which a node that had lost its power is back."""


@dataclass
class Node:
    """The truth about one follower."""

    number: int
    drift: float
    pauses: Pauses
    up: Way
    down: Way
    link: int = 0
    linked: bool = False
    on: bool = True
    lease: Lease = field(default_factory=Lease)
    runs: int = -1


@dataclass
class Run:
    """A leader and its followers, for so many seconds."""

    nodes: int
    lease: float
    loss: float
    seconds: float
    seed: int
    died: list[tuple[float, int]] = field(default_factory=list)
    detected: list[float] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    false_alarms: int = 0
    overlaps: int = 0
    messages: int = 0
    looks: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.now, self._events, self._count = 0.0, list[Any](), 0
        self.known = Membership.begin(0, "leader", -1, {}, 0.0, self.lease)
        self.state = machine.begin(-1, History())
        self.policy = Policy(hang_timeout=float("inf"), startup_timeout=float("inf"), backoff=(0.0, 0.0),
                             no_progress_limit=1 << 30)  # fmt: skip
        self.leader, self.alive = Pauses(self.rng), False
        self.outages: dict[int, float] = {}
        self.broken: float | None = None
        self.told_to_kill = set[tuple[int, int, int]]()
        self.followers = [self._node(number) for number in range(1, self.nodes)]

    def _node(self, number: int) -> Node:
        way = lambda: Way(self.rng, self.loss)  # noqa: E731
        return Node(number, self.rng.uniform(-DRIFT, DRIFT), Pauses(self.rng), way(), way())

    def at(self, when: float, do: Callable[..., None], *about: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, do, about))

    def go(self) -> None:
        for node in self.followers:
            self.at(self.rng.uniform(0, 1), self.link, node)
        for rack in range(-(-self.nodes // RACK)):
            self.at(self.rng.expovariate(1 / OUTAGE_EVERY), self.outage, rack)
        self.at(0.0, self.look, True)
        self.at(60.0, self.power_off)
        while self._events and self._events[0][0] < self.seconds:
            self.now, _, do, about = heapq.heappop(self._events)
            do(*about)

    def clock(self, node: Node) -> float:
        return self.now * (1 + node.drift)

    # ── followers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, node: Node, what: Callable[..., None], *about: Any) -> None:
        """A message to the leader."""
        self.messages += 1
        came = node.up.arrives(self.now, self.outages.get(node.number // RACK, 0.0))
        self.at(came, self.hear, node, node.link, what, about)

    def link(self, node: Node) -> None:
        if node.on and not node.linked:
            node.link, node.linked = node.link + 1, True
            self.send(node, self.hello, self.clock(node), node.runs if node.runs >= 0 else None)
            self.at(self.now, self.beat, node, node.link)

    def beat(self, node: Node, link: int) -> None:
        when = node.pauses.runs_at(self.now)
        if when > self.now:
            self.at(when, self.beat, node, link)
        elif node.on and link == node.link:
            self.send(node, self.beaten, self.clock(node))
            self.at(self.now + BEAT, self.beat, node, link)

    def told(self, node: Node, link: int, what: Callable[..., None], about: Any) -> None:
        """A message of the leader is there."""
        when = node.pauses.runs_at(self.now)
        if when > self.now:
            self.at(when, self.told, node, link, what, about)
        elif node.on and link == node.link:
            what(node, *about)

    def granted(self, node: Node, sent: float) -> None:
        node.lease = node.lease.granted(sent, self.lease, self.clock(node))

    def order(self, node: Node, attempt: int) -> None:
        clock = self.clock(node)
        if clock >= node.lease.until:
            self.send(node, self.gone, attempt)
            return
        node.lease, node.runs = node.lease.arm(clock), attempt
        self.at(self.now, self.guard, node, attempt)

    def guard(self, node: Node, attempt: int) -> None:
        """The warden looks when the lease may be over."""
        if node.runs != attempt:
            return
        left = node.lease.until - self.clock(node)
        if left > 0:
            self.at(self.now + left + 1e-6, self.guard, node, attempt)
        else:
            self.false_alarms += 1
            self.at(self.now + self.rng.uniform(*KILL), self.killed, node, attempt)

    def killed(self, node: Node, attempt: int) -> None:
        if node.runs == attempt:
            node.runs, node.lease = -1, node.lease.clear()
            if node.on and node.linked:
                self.send(node, self.gone, attempt)

    # ── the leader ──────────────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, node: Node, link: int, what: Callable[..., None], about: Any) -> None:
        when = self.leader.runs_at(self.now)
        if when > self.now:
            self.at(when, self.hear, node, link, what, about)
        else:
            what(node, link, *about)

    def answer(self, node: Node, link: int, what: Callable[..., None], *about: Any) -> None:
        self.messages += 1
        came = node.down.arrives(self.now, self.outages.get(node.number // RACK, 0.0))
        self.at(came, self.told, node, link, what, about)

    def hello(self, node: Node, link: int, sent: float, has: int | None) -> None:
        self.known = self.known.joined(node.number, "", link, has, self.now, self.lease)
        self.answer(node, link, self.granted, sent)
        self.look()

    def beaten(self, node: Node, link: int, sent: float) -> None:
        self.known = self.known.heard(node.number, link, self.now, self.now + self.lease)
        self.answer(node, link, self.granted, sent)

    def gone(self, node: Node, link: int, attempt: int) -> None:
        self.known = self.known.told_gone(node.number, link, attempt)
        self.look()

    def look(self, again: bool = False) -> None:
        when = self.leader.runs_at(self.now)
        if again:
            calm = self.state.mode is machine.Mode.RUNNING and not self.state.suspects
            self.at(max(when, self.now + (0.2 if calm else 0.01)), self.look, True)
        if when > self.now:
            return
        self.looks += 1
        before = self.known.lost
        self.known = self.known.looked(self.now)
        for number in self.known.lost.keys() - before.keys():
            self.lost(number)
        views = self.known.nodes(max(1, self.nodes // 2), self.nodes, 5.0, self.now)
        seen = Observation(self.now, alive=(1,) if self.alive else (), nodes=views)
        self.state, actions = machine.step(self.policy, self.state, seen)
        for action in actions:
            if isinstance(action, Launch):
                self.launch(action)
            elif isinstance(action, Send):
                self.alive = False
                self.broken = self.now if self.broken is None else self.broken
                for number in self.known.members[1:]:
                    self.kill(number, self.known.attempt)
        for number, attempt in self.known.stale():
            self.kill(number, attempt)

    def kill(self, number: int, attempt: int) -> None:
        node = self.followers[number - 1]
        order = (number, node.link, attempt)
        if node.linked and order not in self.told_to_kill:
            self.told_to_kill.add(order)
            self.answer(node, node.link, self.obey_kill, attempt)

    def obey_kill(self, node: Node, attempt: int) -> None:
        if node.runs == attempt:
            self.at(self.now + self.rng.uniform(0.005, 0.05), self.killed, node, attempt)
        else:
            self.send(node, self.gone, attempt)

    def lost(self, number: int) -> None:
        deaths = [at for at, who in self.died if who == number and at > self.now - 15]
        if deaths:
            self.detected.append(self.now - deaths[-1])
            self.broken = min(self.broken or self.now, deaths[-1])

    def launch(self, action: Launch) -> None:
        self.overlaps += sum(node.on and node.runs >= 0 for node in self.followers)
        if self.broken is not None:
            self.changes.append(self.now - self.broken)
        self.broken, self.alive = None, True
        self.known = self.known.launched(action.attempt, action.nodes, dict.fromkeys(action.nodes, 8))
        for number in action.nodes[1:]:
            node = self.followers[number - 1]
            self.answer(node, node.link, self.order, action.attempt)

    # ── what happens to them ────────────────────────────────────────────────────────────────────────────────────────

    def power_off(self) -> None:
        members = [n for n in self.followers if n.on and n.runs >= 0]
        if members:
            node = self.rng.choice(members)
            self.died.append((self.now, node.number))
            node.on, node.linked, node.runs, node.lease = False, False, -1, Lease()
            self.at(self.now + BACK, self.power_on, node)
        self.at(self.now + 60.0, self.power_off)

    def power_on(self, node: Node) -> None:
        fresh = self._node(node.number)
        node.on, node.pauses, node.up, node.down = True, fresh.pauses, fresh.up, fresh.down
        self.link(node)

    def outage(self, rack: int) -> None:
        self.outages[rack] = self.now + self.rng.expovariate(1 / OUTAGE)
        self.at(self.now + self.rng.expovariate(1 / OUTAGE_EVERY), self.outage, rack)


def whole(nodes: int, lease: float, loss: float, seconds: float, seed: int) -> dict[str, Any]:
    run = Run(nodes, lease, loss, seconds, seed)
    run.go()
    seen, changes = sorted(run.detected), sorted(run.changes)
    hours = seconds / 3600
    return {
        "nodes": nodes, "lease": lease, "loss": loss, "hours": round(hours, 2), "deaths": len(run.died),
        "seen": len(seen), "detect_p50_s": _at(seen, 0.5), "detect_max_s": _at(seen, 1.0),
        "false_alarms_per_hour": round(run.false_alarms / hours, 1), "attempts": run.state.attempt + 1,
        "change_p50_s": _at(changes, 0.5), "change_max_s": _at(changes, 1.0),
        "messages_per_s": round(run.messages / seconds), "overlaps": run.overlaps,
    }  # fmt: skip


def _at(values: list[float], share: float) -> float | None:
    return round(values[min(len(values) - 1, int(share * len(values)))], 2) if values else None


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--hours", type=float, default=20.0)
    asked.add_argument("--minutes", type=float, default=30.0)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--json", type=Path)
    given = asked.parse_args()
    curves = []
    for loss in LOSSES:
        curves.append(curve(given.seed, given.hours, loss))
        print(json.dumps(curves[-1]), flush=True)
    runs = []
    for nodes in NODES:
        for lease in (1.0, 2.0, 3.0):
            runs.append(whole(nodes, lease, 0.001, given.minutes * 60, given.seed))
            print(json.dumps(runs[-1]), flush=True)
    if given.json:
        given.json.write_text(json.dumps({"margin_s": MARGIN, "curves": curves, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
