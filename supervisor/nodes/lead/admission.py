"""Who says hello to the node that leads: it is admitted, refused, or waits until its number is free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from supervisor.core.nodes.membership import MARGIN, Membership
from supervisor.nodes import hub as links
from supervisor.nodes.talk import messages as says
from supervisor.nodes.talk.probe import Probe, about_spec
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir

_PROOF = 0.5
"""Seconds after which a beat of the one that has the number proves that it lives: it beats five times a second."""


@dataclass(frozen=True, slots=True)
class Guest:
    """Somebody who has said hello."""

    link: int
    host: str
    hello: says.Hello
    at: float
    """When it was heard."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Its number, and why."""

    node: int
    why: str


class Admission:
    """Decides on each hello. The caller asks again about those that wait."""

    def __init__(self, hub: links.Hub, run: RunDir, spec: Spec) -> None:
        """OSError if the run's folder cannot be written."""
        self._hub, self._run, self._nproc = hub, run, spec.nproc
        self._probe, self._about = Probe(run), about_spec(spec)
        self._here: dict[int, says.Hello] = {}
        """What the supervisor of each node said that was admitted last."""
        self._waiting: list[Guest] = []

    def hello(self, asked: links.Asked, now: float) -> Refused | None:
        """Somebody says hello. The answer is look()'s, if it can be understood."""
        try:
            hello = says.as_(says.Hello, asked.hello)
        except ValueError as error:
            return self._refuse(asked.link, -1, f"the leader does not understand this node: {error}")
        self._waiting = [guest for guest in self._waiting if guest.hello.who != hello.who or not hello.who]
        self._waiting.append(Guest(asked.link, asked.host, hello, now))
        return None

    def look(self, known: Membership, now: float, admit: Callable[[Guest, int], Membership]) -> Iterator[Refused]:
        """Everybody that can be answered is: those whom `admit` was given, with their numbers, and those yielded. Where
        that fails, whoever has no answer yet still waits for one."""
        for guest in list(self._waiting):
            node = self._number(guest.hello, known)
            if self._hub.holds(guest.link):
                why = self._unfit(guest.hello, node, known)
                if not why and self._is_rival(guest, node, known, now):
                    if known.peers[node].heard < guest.at + _PROOF:
                        continue
                    there = self._here[node]
                    why = f"node {node} is there already, at {there.address} ({there.host})"
                    why += ": give each node a --node-rank of its own"
                if why:
                    yield self._refuse(guest.link, node, why)
                else:
                    known = admit(guest, node)
                    self._here[node] = guest.hello
            self._waiting.remove(guest)

    @property
    def waits(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._waiting)

    def welcome(self, node: int) -> bytes:
        """What that node is told when it is admitted."""
        run = self._run
        return says.encode(
            says.Welcome(node, str(run.path), self._probe.name, self._probe.nonce, run.run_json.read_bytes())
        )

    def close(self) -> None:
        self._probe.close(self._run)

    def _refuse(self, link: int, node: int, why: str) -> Refused:
        self._hub.refuse(link, says.encode(says.Refuse(why)))
        return Refused(node, why)

    def _number(self, hello: says.Hello, known: Membership) -> int:
        """The number of that node: what it says, what it had, or the next one."""
        if hello.node is not None:
            return hello.node
        had = next((node for node, each in self._here.items() if each.address == hello.address), None)
        linked = {node for node, peer in known.peers.items() if peer.linked}
        if had is not None and had not in linked:
            return had
        return max([known.local, *known.peers]) + 1

    def _unfit(self, hello: says.Hello, node: int, known: Membership) -> str:
        """Why that node cannot be part of this run; empty if it can."""
        if node == known.local:
            return f"node {node} leads, from another supervisor: give each node a --node-rank of its own"
        if hello.nproc != self._nproc:
            return f"--nproc is {hello.nproc} there and {self._nproc} here: give the same on all nodes"
        if differs := says.differs(self._about, hello.about):
            return f"not the same on both nodes: {differs}"
        return ""

    def _is_rival(self, guest: Guest, node: int, known: Membership, now: float) -> bool:
        """Whether another supervisor has that number, and may live. Nobody can be sure of that at once: the machine of
        one that is silent may have lost its power, and come back as this guest. One that has no link may be about to
        make it again, and another machine knows nothing of what runs there."""
        peer, here = known.peers.get(node), self._here.get(node)
        if peer is None or here is None or here.who == guest.hello.who:
            return False
        elsewhere = here.address != guest.hello.address and known.may_run(node)
        return (peer.linked or elsewhere) and now <= peer.leased_until + MARGIN
