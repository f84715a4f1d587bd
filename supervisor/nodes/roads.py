"""This node's end of the roads to the others: it calls them, and is called, at a port like those of its ranks.

    caller    the greeting of a link, and then SIZE bytes, which are more than one packet
    called    the same bytes, and its time of day

Where its ranks will be called at more addresses than the node's own (`interfaces`), these are called, too.

One thread does all of it. A road that is cut is tried again each second. Whoever calls first proves that it has the
token, as at the leader's port.
"""

from __future__ import annotations

import select
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from supervisor.nodes.inbox import Inbox
from supervisor.nodes.interfaces import Elsewhere
from supervisor.nodes.wire.dialing import Dialing
from supervisor.nodes.wire.link import Link, LinkLost
from supervisor.nodes.wire.listener import Listener
from supervisor.process.addresses import is_ours

SIZE = 64 << 10
_TEXT = bytes(range(256)) * (SIZE // 256)
_TIME = struct.Struct(">d")
ANSWER = 3.0
"""Seconds that the bytes may take, there and back."""
_HEARD = 2 * ANSWER
"""Seconds that a caller may stay. The one that called tells what was lost on the way, so it is not hung up on first."""
TRIES = 2
"""Calls that must fail, one after the other, before a road counts as cut: the other side may be busy."""
_SOON, _LATER = 0.3, 1.0
"""Seconds until the next call: before the road counts as cut, and afterwards."""

Place = tuple[str, int]
"""An address, and a port."""
Places = dict[str, Place]
"""Where a node is called: by "" its own address, and by the setting that has chosen them its others."""


@dataclass(frozen=True, slots=True)
class Reached:
    """How a node is called by the others."""

    places: Places
    certain: frozenset[str] = frozenset()
    """The settings of those where its ranks are called for certain."""
    closed: dict[str, str] = field(default_factory=dict)
    """The settings by which its ranks cannot be called at all, and why."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A node answers, or it does not any more."""

    node: int
    why: str = ""
    """Why not: where it was called, and what happened."""
    setting: str = ""
    """Of the address that was called; "" for the node's own."""
    ahead: float = 0.0
    """Seconds that its time of day is ahead of ours."""


Dial = Callable[[str, Place, float], Dialing]
_NOWHERE = Elsewhere({})


class Roads:
    """Calls and is called. Its methods may be called by one other thread: the loop."""

    def __init__(
        self,
        address: str,
        token: bytes,
        time_of_day: Callable[[], float] = time.time,
        others: Elsewhere = _NOWHERE,
    ) -> None:
        """Listens at any free port of `address`, from which it calls, too; OSError if it cannot. And at the other
        addresses at which the ranks of this node are called, where it can."""
        self._address, self._token, self._time_of_day = address, token, time_of_day
        self._listeners = {"": Listener(address, 0, token)}
        closed = dict.fromkeys(others.absent, "no interface here has that name, and an address")
        for setting, other in others.addresses.items():
            try:
                self._listeners[setting] = Listener(other, 0, token)
            except OSError as error:
                closed[setting] = f"{other}: {error.strerror or error}"
        own = {"": address, **others.addresses}
        places = {setting: (own[setting], each.port) for setting, each in self._listeners.items()}
        self.reached = Reached(places, others.certain & places.keys(), closed)
        """How the others call this node."""
        self._inbox: Inbox[Tried] = Inbox()
        self._wake: Inbox[None] = Inbox()
        self._lock = threading.Lock()
        self._calls: dict[tuple[int, str], _Call] = {}
        self._callers: dict[Link, float] = {}
        """Those who call, and until when they may."""
        self._over = False
        self._thread = threading.Thread(target=self._run, name="roads", daemon=True)
        self._thread.start()

    @property
    def fd(self) -> int:
        """Readable when take() has something."""
        return self._inbox.fd

    def take(self) -> list[Tried]:
        """What has changed since the last call. RuntimeError if the thread has failed."""
        return self._inbox.take()

    def call(self, nodes: Mapping[int, Places], anew: bool = False) -> None:
        """These nodes are called, and no others; a node that was not among them before, or is elsewhere now, anew.
        `anew`: all are called now. What has not changed is not told again."""
        now = time.monotonic()
        with self._lock:
            for (node, setting), call in list(self._calls.items()):
                if nodes.get(node, {}).get(setting) != call.place:
                    call.close()
                    del self._calls[node, setting]
                elif anew:
                    call.due = min(call.due, now)
            for node, places in nodes.items():
                for setting, place in places.items():
                    if (node, setting) not in self._calls:
                        ours = bool(setting) and is_ours(place[0]) and not is_ours(places[""][0])
                        self._calls[node, setting] = _Call(node, setting, place, ours, now)
        self._wake.put(None)

    def close(self) -> None:
        """Nobody is called, and nobody is answered."""
        self._over = True
        self._wake.put(None)
        self._thread.join()
        for call in self._calls.values():
            call.close()
        for link in self._callers:
            link.close()
        for listener in self._listeners.values():
            listener.close()
        self._inbox.close()
        self._wake.close()

    # ── the thread ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while not self._over:
                self._sleep()
                with self._lock:
                    self._wake.take()
                    now = time.monotonic()
                    self._answer(now)
                    for call in self._calls.values():
                        tried = call.tick(now, self._dial, self._time_of_day)
                        if tried is not None:
                            self._inbox.put(tried)
        except BaseException as error:
            self._inbox.fail(error)

    def _sleep(self) -> None:
        """Until something can be done."""
        poll = select.poll()
        poll.register(self._wake.fd, select.POLLIN)
        with self._lock:
            for listener in self._listeners.values():
                for fd in listener.fds():
                    poll.register(fd, select.POLLIN)
            for link in self._callers:
                poll.register(link.socket, _events(link.wants_write))
            for call in self._calls.values():
                for fd, writes in call.waits():
                    poll.register(fd, _events(writes))
            due = [*(call.until for call in self._calls.values()), *self._callers.values()]
            deadlines = (listener.deadline() for listener in self._listeners.values())
            due += [deadline for deadline in deadlines if deadline is not None]
            seconds = min(due, default=float("inf")) - time.monotonic()
        poll.poll(None if seconds == float("inf") else max(1.0, seconds * 1000))

    def _dial(self, setting: str, place: Place, now: float) -> Dialing:
        """gloo and NCCL let the kernel choose the address from which they call."""
        return Dialing(*place, self._token, now, None if setting else self._address)

    def _answer(self, now: float) -> None:
        """Everybody with the token gets the bytes back, and the time of day."""
        for listener in self._listeners.values():
            for link in listener.accept(now):
                self._callers[link] = now + _HEARD
        for link, until in list(self._callers.items()):
            try:
                for body in link.tick():
                    link.send(_TIME.pack(self._time_of_day()) + body[:SIZE])
                if now >= until:
                    raise LinkLost("it has had its time")
            except LinkLost:
                link.close()
                del self._callers[link]


class _Call:
    """The calls to one node, one after the other, until it answers."""

    def __init__(self, node: int, setting: str, place: Place, ours: bool, due: float) -> None:
        """`ours`: the address is one of this machine, though the node is another machine."""
        self.node, self.setting, self.place, self._ours = node, setting, place, ours
        self.due = due
        """When the next call begins."""
        self._dialing: Dialing | None = None
        self._link: Link | None = None
        self._ends = 0.0
        """When the bytes must be back."""
        self._began = 0.0
        self._failed = 0
        self._told: bool | None = None
        """Whether the node was told to answer."""

    def tick(self, now: float, dial: Dial, clock: Callable[[], float]) -> Tried | None:
        """Goes on as far as it can. Returns what is new."""
        try:
            ahead = self._go(now, dial, clock)
        except LinkLost as error:
            self.close()
            self._failed += 1
            self.due = now + (_SOON if self._failed < TRIES else _LATER)
            host, port = self.place
            why = f"at {host}:{port}: {error}"
            return self._tell(Tried(self.node, why, self.setting)) if self._failed >= TRIES else None
        if ahead is None:
            return None
        self.close()
        self._failed, self.due = 0, float("inf")
        return self._tell(Tried(self.node, setting=self.setting, ahead=ahead))

    def waits(self) -> list[tuple[int, bool]]:
        """(descriptor, whether it waits until it can write) of all that tick() waits for."""
        if self._dialing is not None:
            return [(fd, not self._dialing.connected) for fd in self._dialing.fds()]
        return [(fd, self._link.wants_write) for fd in self._link.fds()] if self._link is not None else []

    @property
    def until(self) -> float:
        """When the next tick() is due even if nothing comes."""
        return self._dialing.until if self._dialing is not None else self._ends if self._link is not None else self.due

    def close(self) -> None:
        for each in (self._dialing, self._link):
            if each is not None:
                each.close()
        self._dialing = self._link = None

    def _go(self, now: float, dial: Dial, clock: Callable[[], float]) -> float | None:
        """By how much the other node's time of day is ahead, once it has answered. LinkLost if it does not."""
        if self._link is None:
            if self._dialing is None:
                if now < self.due:
                    return None
                if self._ours:
                    raise LinkLost("this node has that address itself")
                self._dialing = dial(self.setting, self.place, now)
            self._link = self._dialing.tick(now)
            if self._link is None:
                return None
            self._dialing, self._began, self._ends = None, clock(), now + ANSWER
            self._link.send(_TEXT)
        for body in self._answers(self._link, now):
            if body[_TIME.size :] != _TEXT:
                raise LinkLost("it answers, and with something else than what was sent")
            # It told its time between these two moments.
            theirs: float = _TIME.unpack_from(body)[0]
            return theirs - (self._began + clock()) / 2
        if now >= self._ends:
            lost = f"of {SIZE >> 10} KiB nothing comes back within {ANSWER:g} s"
            raise LinkLost(f"{lost}, though it answers: large packets are lost on the way (compare the MTUs: ip link)")
        return None

    def _answers(self, link: Link, now: float) -> list[bytes]:
        """What has come. LinkLost if the other side hung up in time: later it did because nothing came to it."""
        try:
            return link.tick()
        except LinkLost:
            if now < self._ends:
                raise
            return []

    def _tell(self, tried: Tried) -> Tried | None:
        answers = not tried.why
        changed, self._told = answers != self._told, answers
        return tried if changed else None


def _events(writes: bool) -> int:
    return select.POLLIN | (select.POLLOUT if writes else 0)
