"""The other nodes of a run, for the node that leads: what they have seen comes in, and what they shall do goes out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from supervisor.attempt import stacks
from supervisor.core.actions import Reach
from supervisor.core.machine import Mode
from supervisor.core.model import Observation, StopKind
from supervisor.core.nodes.membership import Membership
from supervisor.core.nodes.merge import LimbView
from supervisor.core.nodes.nodes import Nodes
from supervisor.core.nodes.roads import together
from supervisor.core.telling.news import News
from supervisor.group.seat import Seat, Seats
from supervisor.live.mirror import Mirror
from supervisor.nodes import hub as links
from supervisor.nodes.lead.admission import Admission, Guest
from supervisor.nodes.lead.looks import Looks
from supervisor.nodes.lead.network import Network
from supervisor.nodes.lead.parts import Part, Parts
from supervisor.nodes.lead.views import Views
from supervisor.nodes.look import Answer
from supervisor.nodes.own import Own
from supervisor.nodes.roads import Roads
from supervisor.nodes.talk import messages as says
from supervisor.nodes.warden import start_warden
from supervisor.run.events import EventLog
from supervisor.run.folder.stops import Stops
from supervisor.run.spec import Spec
from trainer.rundir.codes import ExitCode
from trainer.rundir.layout import RunDir, newest_checkpoint
from trainer.rundir.records.gate import Release

_AGAIN = 0.5
"""Seconds after which an order that is still in force is given again."""
_LONG_START = 10.0
"""Seconds without a step after which the nodes call each other again."""


def _clock() -> float:
    """Seconds of the clock that counts a sleep of the machine, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Here:
    """The node that leads."""

    address: str
    """Where the ranks meet."""
    own: Own
    roads: Roads


class Leader:
    """Keeps the links to all followers. Nothing here blocks; tick() does the work."""

    def __init__(
        self, hub: links.Hub, run: RunDir, spec: Spec, log: EventLog, stops: Stops, known: Membership, here: Here
    ) -> None:
        """OSError if the run's folder cannot be written, or no warden can be started."""
        self.known = known
        self._hub, self._run, self._spec, self._log, self._stops = hub, run, spec, log, stops
        self._admission = Admission(hub, run, spec)
        self._bodies: dict[int, bytes] = {}
        """The newest beat of each node that was read."""
        self._own, self._warden = here.own, start_warden(here.own.path, spec.mark)
        self._parts = Parts(spec, here.address, self._send)
        self._network = Network(here.roads, known.local, self._send, self._tell)
        self._views = Views()
        self._looks = Looks(run, self._send)
        self._dumps = False
        """Whether the stacks of all nodes are awaited."""
        self._mirror: Mirror | None = None
        self.seats: Seats | None = self._seats
        self._state: says.State | None = None
        self._sent: tuple[says.Signal, float] | None = None
        self._launched_at = 0.0

    # ── look ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def pids(self) -> set[int]:
        return {self._warden.pid}

    def fds(self) -> list[int]:
        """The descriptors that are readable when there is something for tick()."""
        return [self._hub.fd, self._network.fd, self._looks.fd]

    def tick(self) -> None:
        """All that has come from other nodes is known."""
        now = _clock()
        for event in self._hub.take():
            match event:
                case links.Asked():
                    if refused := self._admission.hello(event, now):
                        self._tell(refused.node, "node_refused", "warning", why=refused.why)
                case links.Received():
                    self._received(event)
                case links.Closed():
                    self.known = self.known.closed(event.node, event.link)
                    self._tell(event.node, "node_left", "warning", why=event.why)
                    if not self.known.is_linked(event.node):
                        self._network.left(event.node)
                case links.Leash():
                    self.known = self.known.leash(event.node, event.attempt, event.rank, event.ended)
        for node, heard in self._hub.heard().items():
            self.known = self.known.heard(node, heard.link, heard.at, heard.leased_until)
            if heard.doubt < float("inf"):
                self._views.offsets[node] = heard.offset
            if heard.body != self._bodies.get(node, b""):
                self._bodies[node] = heard.body
                self._seen(node, heard.body)
        before = set(self.known.lost)
        self.known = self.known.looked(now)
        self._answer(now)
        self._network.tick()
        for node in set(self.known.lost) - before:
            self._hub.drop(node)
        self._parts.wanted = self._next() if self.known.members else ()
        for node, attempt in self.known.stale():
            self._send(node, says.Signal(attempt, "KILL", Reach.ALL.value))

    def _nodes(self) -> Nodes:
        """The nodes now. Times are of the clock of the loop."""
        now = _clock()
        asleep = now - time.monotonic()
        nodes = self._network.seen(self.known.nodes(*self._asked_for, self._spec.node_wait, now))
        runs = self._state is not None and not self._state.stopping
        return replace(
            nodes,
            views=tuple(
                # Ranks that a node does not see are not silent: so nobody judges them meanwhile.
                replace(view, since=view.since - asleep, silent=view.silent or (runs and self._blind(view.node)))
                for view in nodes.views
            ),
        )

    def _blind(self, node: int) -> bool:
        return node in self.known.members and self._views.blind(node, time.monotonic())

    @property
    def _asked_for(self) -> tuple[int, int]:
        least, _, most = self._spec.nnodes.partition(":")
        return int(least), int(most or least)

    def merge(self, seen: Observation, news: News, now: float) -> tuple[Observation, News]:
        """What all members see and tell, as of `now`, with what this node sees."""
        others = [node for node in self.known.members if node != self.known.local and node not in self.known.lost]
        self._looks.pids = news.pids
        self._looks.tick(self.known.attempt, others)
        seen = self._views.observation(LimbView(self.known.local, seen), others, self.world(self._spec.nproc), now)
        if self._dumps and seen.stacks is not None:
            self._dumps = False
            with contextlib.suppress(OSError):
                stacks.keep(seen.stacks, self._run.attempt(self.known.attempt).groups)
        # Another node's ranks may train before this node knows its own launcher: no attempt has news before its begin.
        told = self._views.news(news, others) if not self._parts.due else news
        return replace(seen, nodes=self._nodes()), told

    def world(self, nproc: int) -> int:
        """The number of ranks of the attempt, with `nproc` on each node."""
        return len(self.known.members) * nproc

    # ── act ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _seats(self, expected: Release | None) -> tuple[Seat, Part]:
        """Orders the parts of a new group on the other nodes. OSError if no port is free."""
        return self._parts.order(self._parts.due or self._next(), self._links, expected)

    def _next(self) -> tuple[int, ...]:
        """The nodes of the next attempt, if nothing changes: those of this one, and others that wait."""
        nodes = self._nodes()
        spare = [view.node for view in nodes.views if view.ready and not view.member]
        members = [node for node in self.known.members if node != self.known.local]
        return (self.known.local, *sorted(together([self.known.local, *members, *spare], nodes.cut, nodes.most)[1:]))

    def _links(self, nodes: tuple[int, ...]) -> tuple[int, ...]:
        return self.known.links(nodes)

    def launch(self, number: int, nodes: tuple[int, ...]) -> None:
        """The attempt `number` has begun, on these nodes. Their groups are released with this node's."""
        self._hub.arm()
        self._parts.due, self._launched_at = nodes, time.monotonic()
        self._close_mirror()
        self._views.begin(number)
        self.known = self.known.launched(number, nodes, dict.fromkeys(nodes, self._spec.nproc))
        self._state = None

    def released(self) -> dict[str, Any]:
        """The group of the attempt was released. Later groups are for the next one. Returns what to tell of it."""
        self._parts.due = ()
        hosts = {node: peer.host for node, peer in self.known.peers.items()}
        return {"nodes": {str(node): hosts.get(node, self.known.host) for node in self.known.members}}

    def state(self, mode: Mode, stepped: bool, silent: Mapping[int, float]) -> None:
        """The members know what is thought of the attempt."""
        state = says.State(self.known.attempt, mode is Mode.STOPPING, stepped, {k: round(v) for k, v in silent.items()})
        if mode is Mode.RUNNING and (silent or (not stepped and time.monotonic() >= self._launched_at + _LONG_START)):
            self._network.doubt(self.known.attempt)
        if state != self._state and mode in (Mode.RUNNING, Mode.STOPPING):
            self._state = state
            self._to_members(state)

    def send(self, name: str, reach: Reach) -> None:
        """The members send the signal to their processes of the attempt."""
        signal, now = says.Signal(self.known.attempt, name, reach.value), time.monotonic()
        if self._sent is None or self._sent[0] != signal or now >= self._sent[1] + _AGAIN:
            # A node repeats a KILL by itself.
            self._sent = signal, now
            self._to_members(signal)

    def dump(self, now: float) -> bool:
        """The members dump the stacks of their ranks. Whether stacks will come with what they see."""
        others = [node for node in self.known.members if node != self.known.local]
        self._views.asked(now, others)
        self._to_members(says.Dump(self.known.attempt))
        self._dumps = bool(others)
        return self._dumps

    def ask_faults(self) -> None:
        """The ranks of all members look for new faults."""
        self._to_members(says.Faults(self.known.attempt))

    def end(self, exit_code: int, reason: str, keep: bool) -> None:
        """Every node knows that the run is over, if it can be reached within a moment."""
        if exit_code != ExitCode.HELD:
            # Nobody has looked during the last flush: a node that has made its link again meanwhile has no answer yet.
            # It gets none from a leader that another one has followed.
            with contextlib.suppress(OSError):
                self.tick()
        over = says.Over(exit_code, reason, keep, newest_checkpoint(self._run.checkpoints))
        for node in self.known.peers:
            self._send(node, over)
        self._hub.close()
        self._close_mirror()
        self._network.close()
        self._admission.close()
        self._own.close()

    def _to_members(self, message: msgspec.Struct) -> None:
        for node in self.known.members:
            if node != self.known.local and node not in self.known.lost:
                self._send(node, message)

    def _send(self, node: int, message: msgspec.Struct) -> None:
        self._hub.send(node, says.encode(message))

    # ── what comes in ───────────────────────────────────────────────────────────────────────────────────────────────

    def _answer(self, now: float) -> None:
        """Everybody who has said hello has an answer, or waits for one."""
        for refused in self._admission.look(self.known, now, lambda guest, node: self._admit(guest, node, now)):
            self._tell(refused.node, "node_refused", "warning", why=refused.why)

    def _admit(self, guest: Guest, node: int, now: float) -> Membership:
        hello = guest.hello
        lease = self._hub.admit(guest.link, node, self._admission.welcome(node))
        self.known = self.known.joined(node, hello.host, guest.link, hello.attempt, now, lease)
        self._tell(node, "node_joined", address=hello.address)
        # It calls all anew. Whoever has called it on its old link, of whose end nobody has heard, calls it once more.
        self._network.left(node)
        self._network.joined(node, hello.reached)
        if hello.attempt == self.known.attempt and self.known.may_run(node):
            self._remind(node)
        return self.known

    def _remind(self, node: int) -> None:
        """The member knows what was said of the attempt once, perhaps while it had no link."""
        for message in (self._state, self._sent and self._sent[0]):
            if message is not None and message.attempt == self.known.attempt:
                self._send(node, message)

    def _received(self, event: links.Received) -> None:
        peer = self.known.peers.get(event.node)
        if peer is None or peer.link != event.link:
            return
        try:
            message = says.up(event.body)
        except ValueError as error:
            self._hub.drop(event.node)
            self._tell(
                event.node, "warning", "warning", text=f"node {event.node} said what nobody understands: {error}"
            )
            return
        match message:
            case says.Seen():
                self._saw(event.node, message)
            case says.Gone(attempt):
                self.known = self.known.told_gone(event.node, event.link, attempt)
            case says.Parked(group):
                self._parts.parked(event.node, group)
            case says.GroupLost(group, why, unfit):
                self._parts.lost(group, f"node {event.node}: {why}", unfit)
            case says.Asked(kind, now, warned):
                self._stops.warned = self._stops.warned or warned
                self._stops.kind = self._stops.kind or StopKind(kind)
                self._stops.now = self._stops.now or now
            case Answer():
                self._looks.answered(event.node, message)
            case says.Called():
                self._network.called(event.node, message)
            case says.Told(name, level, fields):
                self._tell(event.node, name, level, **fields)

    def _seen(self, node: int, body: bytes) -> None:
        """A beat has come with a look."""
        with contextlib.suppress(ValueError):
            if isinstance(message := says.up(body), says.Seen):
                self._saw(node, message)

    def _saw(self, node: int, seen: says.Seen) -> None:
        self._views.take(node, seen, time.monotonic())
        self.known = self.known.replaced(node, seen.attempt, seen.news.replaced)
        self._mirror_beats(node, seen)

    def _mirror_beats(self, node: int, seen: says.Seen) -> None:
        """Keeps the beats of other nodes' ranks in a file, for `status` and the like."""
        if seen.attempt != self.known.attempt:
            return
        with contextlib.suppress(OSError, ValueError):
            if self._mirror is None:
                self._mirror = Mirror.new(self._run.attempt(seen.attempt), self.world(self._spec.nproc))
            self._mirror.put(seen.beats, self._views.offsets.get(node, 0.0))

    def _close_mirror(self) -> None:
        if self._mirror is not None:
            self._mirror.close()
            self._mirror = None

    def _tell(self, node: int, name: str, level: str = "info", **fields: object) -> None:
        peer = self.known.peers.get(node)
        self._log.emit(name, level, node=node, host=peer.host if peer else "", **fields)
