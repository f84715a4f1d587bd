"""The loop of a node that follows: it looks at its part of an attempt, tells the leader, and does what that says."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import msgspec

from supervisor.core.actions import Reach
from supervisor.core.model import StopKind
from supervisor.core.poll_interval import CALM
from supervisor.errors import Refusal
from supervisor.loop.fault_injector import FaultInjector
from supervisor.loop.flush import Flusher
from supervisor.loop.sleep import sleep
from supervisor.nodes import line as links
from supervisor.nodes.follow.duty import Duty
from supervisor.nodes.look import Eyes
from supervisor.nodes.own import Own
from supervisor.nodes.roads import Roads
from supervisor.nodes.talk import messages as says
from supervisor.nodes.talk.probe import shares
from supervisor.nodes.warden import start_warden
from supervisor.process.kill import end_all
from supervisor.process.place import here
from supervisor.process.proctree import be_subreaper
from supervisor.process.reaper import Reaper
from supervisor.run import spec as specs
from supervisor.run.folder.stops import Stops, signals
from trainer.checkpoint.memory import snapshots
from trainer.rundir.codes import ExitCode
from trainer.rundir.files.codec import decode
from trainer.rundir.layout import RunDir
from trainer.rundir.variables import LEASH

_FIRST_LEASE = 1.0
"""Seconds that the first lease may take after the leader's welcome."""
_DISK = 5.0
"""Seconds for which a shared disk may fail to tell what is on it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """This node, as it was launched."""

    number: int | None
    """None: the leader gives it one."""
    address: str
    nproc: int
    about: dict[str, str]
    """What must be the same on all nodes."""
    own: Own
    wait: float
    """Seconds that it waits for a leader."""
    roads: Roads


class Follower:
    """The life of one supervisor that follows."""

    def __init__(
        self,
        line: links.Line,
        run: RunDir,
        node: Node,
        environ: Mapping[str, str],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line, self._run, self._node, self._environ, self._say, self._clock = line, run, node, environ, say, clock
        self._stops = Stops()
        self._told_stop: tuple[StopKind | None, bool] = (None, False)
        self._reaper = Reaper()
        self._duty: Duty | None = None
        self._eyes = Eyes()
        self._number, self._who = node.number, secrets.token_hex(8)
        self._linked = False
        self._since = clock()
        """When the link was lost, or this loop began."""
        self._over: says.Over | None = None
        self._nonce = ""
        """Of the leader that has admitted this node; each has its own."""
        self.leaderless = False
        """Whether it has ended because no leader was there, and nobody had asked for the end."""
        self._injector: FaultInjector | None = None
        self._released: tuple[says.ReleaseGroup, float] | None = None
        """What the leader has released here, and when, until it begins."""
        self._events = deque[links.Event]()
        """What the line has told and this loop has not heard yet."""
        self._blind_by = set[type[Exception]]()

    def follow(self) -> int:
        """The run is over, or this node is of no use to it. Nothing of it is alive here. Returns the exit code of
        `launch`. Refusal if this node cannot be part of the run."""
        be_subreaper()
        with signals(self._stops) as wakeup, ExitStack() as stack:
            stack.callback(self._line.close)
            stack.callback(self._node.roads.close)
            stack.callback(self._clear_up)
            ended, code = set[int](), None
            while code is None:
                code, ended = self._turn(ended, wakeup)
        return code

    def _turn(self, ended: set[int], wakeup: int) -> tuple[int | None, set[int]]:
        """One turn of the loop. `ended` are the fds that were readable after the last sleep. Returns the exit code if
        this was the last turn, and the next ones."""
        try:
            self._reaper.reap()
            self._listen()
            code = self._work(ended)
            return code, self._sleep(wakeup) if code is None else ended
        except (OSError, MemoryError) as error:
            self._blind(error)
            return None, ended

    def _blind(self, error: Exception) -> None:
        """Without descriptors, memory or a disk we cannot look or act. The ranks train on, and the line keeps their
        lease. We try again soon. Raises `error` if this node has no part in the run (any more: the leader is lost)."""
        alone = not self._linked and (self._stops.kind is not None or self._clock() >= self._since + self._node.wait)
        if self._duty is None or (alone and not self._duty.busy):
            raise error
        if type(error) not in self._blind_by:
            self._blind_by.add(type(error))
            text = f"the supervisor of this node cannot look after its ranks ({error}), and tries again"
            self._tell(says.Told("warning", "warning", {"text": f"{text}; training goes on"}))
        time.sleep(CALM)

    def _sleep(self, wakeup: int) -> set[int]:
        duty = self._duty
        if duty is None:
            return sleep(CALM, wakeup, [self._line.fd])
        fds = [self._line.fd, self._node.roads.fd, self._eyes.fd, *duty.fds()]
        return sleep(duty.interval(self._clock()), wakeup, fds, duty.limb.slow_to_go(self._clock()))

    def _work(self, ended: set[int]) -> int | None:
        """What is due. Returns the exit code if nothing is any more."""
        if self._over is not None:
            return self._over.exit_code
        now = self._clock()
        if self._duty is not None:
            self._launch(self._duty, now)
            for message in self._duty.look(now, ended):
                self._beat(self._duty)
                self._tell(message)
            self._beat(self._duty)
            if self._injector is not None and (watch := self._duty.watch) is not None:
                self._injector.strike(watch, self._duty.limb.number)
            if self._duty.freed():
                self._line.clear()
        self._pass_on_stops()
        for answer in self._eyes.take():
            self._tell(answer)
        for tried in self._node.roads.take():
            self._tell(says.Called(tried.node, tried.why, tried.setting))
        nobody = not self._linked and now >= self._since + self._node.wait
        asked = self._stops.kind is not None and not self._linked
        if not (nobody or asked):
            return None
        if self._duty is None and nobody and not asked:
            raise Refusal(f"no leader within {self._node.wait:.0f} s: {self._line.trouble}")
        return self._lost_leader(now)

    def _beat(self, duty: Duty) -> None:
        """The next beat carries the newest look."""
        if duty.newest is not None:
            self._line.beat(says.encode(duty.newest))
            duty.newest = None

    def _launch(self, duty: Duty, now: float) -> None:
        """The attempt that was released begins, as soon as this node has a lease."""
        if self._released is None:
            return
        order, at = self._released
        begun = False
        with contextlib.suppress(ValueError):
            self._line.arm()
            begun = duty.launch(order.group, order.seat, order.body, now)
        if begun or now >= at + _FIRST_LEASE:
            self._released = None
        if not begun and self._released is None:
            self._tell(says.Gone(order.body.attempt))

    def _lost_leader(self, now: float) -> int | None:
        """Ends what is left here, and keeps the state. The engine shall start this node again."""
        if self._duty is not None and self._duty.busy:
            self._duty.fence(now)
            return None
        if self._duty is not None:
            try:
                self._keep_state(Flusher(self._duty.run, self._duty.spec.mark))
            except OSError as error:
                self._say(f"the newest snapshot could not be saved: {error}")
        self._say("the leader is lost: this node ends with 75, to be started again")
        self.leaderless = self._stops.kind is None
        return ExitCode.PREEMPTED

    def _keep_state(self, flusher: Flusher) -> None:
        if flusher.newest() >= 0:
            for outcome in flusher.finish(sweep=False):  # others may go on
                if outcome is not None and "error" in outcome:
                    self._say(f"the newest snapshot could not be saved: {outcome['error']}")
        if (step := flusher.leave(parts=True)) is not None:
            part = "a part of " if step > flusher.newest() else ""
            self._say(f"{part}step {step} is in memory only, in {flusher.segment}, until this node stops")

    def _pass_on_stops(self) -> None:
        stops = self._stops
        if stops.kind is not None and self._linked and self._told_stop != (stops.kind, stops.now):
            self._told_stop = stops.kind, stops.now
            self._tell(says.Asked(stops.kind.value, stops.now, stops.warned))

    # ── what the leader says ────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> None:
        self._events += self._line.take()
        while self._events:
            # It is kept until it was heard to the end: without descriptors or memory that fails, and is done again.
            self._hear(self._events[0])
            self._events.popleft()

    def _hear(self, event: links.Event) -> None:
        match event:
            case links.Linked():
                self._line.hello(says.encode(self._hello()))
            case links.Welcomed(body):
                self._welcomed(says.as_(says.Welcome, body))
            case links.Refused(body):
                raise Refusal(f"the leader refuses this node: {says.as_(says.Refuse, body).text}")
            case links.Received(body):
                self._obey(says.down(body))
            case links.Closed():
                # What came on that link is void. The next leader does not know what the last one was told.
                self._node.roads.call({})
                self._released, self._told_stop = None, (None, False)
                if self._linked:
                    self._linked, self._since = False, self._clock()
                if self._duty is not None:
                    # What waits here was part of groups that the leader gives up without us.
                    self._duty.groups.drop_all()
            case links.Fenced():
                if self._duty is not None and self._duty.busy:
                    self._duty.fence(self._clock())
                else:
                    self._line.clear()

    def _hello(self) -> says.Hello:
        duty, node = self._duty, self._node
        attempt = duty.limb.number if duty is not None and duty.busy else None
        where, reached = (here()["host"], node.address), node.roads.reached
        return says.Hello(self._number, *where, node.nproc, attempt, node.about, self._who, reached)

    def _welcomed(self, welcome: says.Welcome) -> None:
        if welcome.nonce != self._nonce:
            if self._duty is not None:
                # Another leader, which has not begun what runs here, and waits for its end.
                self._duty.fence(self._clock())
            if not self._shares(welcome):
                raise Refusal(
                    f"{self._run.path} is not the folder that the leader calls {welcome.run}: all nodes need the same "
                    "one, on a disk that they share; give it with --run-dir"
                )
        self._linked, self._line.node, self._nonce = True, welcome.node, welcome.nonce
        if self._duty is None:
            self._number = welcome.node
            self._duty = self._prepare(welcome)
            self._say(f"node {welcome.node} of {welcome.run}, led from {self._line.leader}")

    def _shares(self, welcome: says.Welcome) -> bool:
        """Whether the run's folder here is the leader's. Refusal if the disk does not tell for some seconds."""
        until = self._clock() + _DISK
        while True:
            try:
                return shares(self._run, welcome.probe, welcome.nonce)
            except OSError as error:
                if self._clock() >= until:
                    raise Refusal(f"{self._run.path} cannot be read ({error.strerror or error})") from None
            time.sleep(CALM)

    def _prepare(self, welcome: says.Welcome) -> Duty:
        spec = specs.revealed(specs.restore(decode(welcome.spec, dict)), self._environ)
        mark, address = f"{spec.mark}-n{welcome.node}", self._node.address
        spec = dataclasses.replace(spec, mark=mark, local_addr=address, keep_warm=0.0)
        run = dataclasses.replace(self._run, place=self._node.own.path, node=welcome.node)
        end_all(spec.mark, set(), self._reaper, spec.policy.stuck_after)
        warden = start_warden(self._node.own.path, spec.mark)
        self._injector = FaultInjector(run.faults, run.checkpoints, (), ())
        variables = {LEASH: str(self._line.leash)}
        return Duty(run, spec, self._environ, self._reaper, self._tell, variables, {warden.pid})

    def _obey(self, message: says.Down) -> None:
        duty = self._duty
        if duty is None:
            return
        now = self._clock()
        match message:
            case says.MakeGroup(group, seat, expected):
                duty.groups.make(group, seat, expected)
            case says.DropGroup(group):
                duty.groups.drop(group)
            case says.ReleaseGroup():
                self._released = message, now
            case says.Signal(attempt, name, reach):
                if self._released is not None and self._released[0].body.attempt == attempt:
                    # It is over before it has begun here.
                    self._released = None
                if not duty.signal(attempt, name, Reach(reach), now):
                    self._tell(says.Gone(attempt))
            case says.State():
                duty.hear(message)
            case says.Dump(attempt):
                duty.dump(attempt)
            case says.Faults(attempt):
                duty.ask_faults(attempt)
            case says.Look(attempt, ask, seconds):
                watch = duty.watch if attempt == duty.limb.number else None
                pids = {rank: process.pid for rank, process in watch.ranks.items()} if watch is not None else {}
                self._eyes.look(ask, pids, duty.run.attempt(attempt).stacks, seconds)
            case says.CallNodes(others, anew):
                self._node.roads.call(others, anew)
            case says.Over():
                self._over = message
                duty.fence(now)

    def _tell(self, message: msgspec.Struct) -> None:
        self._line.send(says.encode(message))

    # ── end ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _clear_up(self) -> None:
        """No process of the run is alive here, and nothing of it is left in this node's folder."""
        duty = self._duty
        if duty is not None:
            duty.groups.close()
            end_all(duty.spec.mark, duty.helpers, self._reaper, duty.spec.policy.stuck_after)
            duty.close()
            if self._over is not None and not self._over.keep:
                flusher = Flusher(duty.run, duty.spec.mark)
                if (
                    self._over.exit_code != ExitCode.PREEMPTED
                    or snapshots.newest_part(flusher.segment, some=True) <= self._over.saved
                ):
                    snapshots.remove(flusher.segment)
        self._node.own.close()
