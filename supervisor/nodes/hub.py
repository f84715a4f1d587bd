"""The leader's end of all links. One thread reads beats and grants leases, whatever the loop waits for.

The thread has sockets and memory, and never a file: so a disk that does not answer for half a minute ends no lease.
The loop gets what it must judge as events, and one descriptor to sleep on.
"""

from __future__ import annotations

import selectors
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.core.nodes.clock import Offset
from supervisor.core.nodes.lease import Gaps, Lease
from supervisor.nodes.inbox import Inbox
from supervisor.nodes.lease import LeaseWord, boottime
from supervisor.nodes.wire import beats
from supervisor.nodes.wire.beats import Beat, Bond, Grant
from supervisor.nodes.wire.link import Link, LinkLost
from supervisor.nodes.wire.listener import Listener

_OWN_EVERY = 0.1
"""Seconds between two renewals of the leader's own lease."""
_FAREWELL = 0.2
"""Seconds that the last messages have to arrive."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A follower says hello on a new link, and waits for admit() or refuse()."""

    link: int
    hello: bytes
    host: str
    """Its address."""


@dataclass(frozen=True, slots=True)
class Received:
    node: int
    link: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    node: int
    link: int
    why: str


@dataclass(frozen=True, slots=True)
class Leash:
    """A rank has a connection of its own, or (`ended`) its process is gone."""

    node: int
    attempt: int
    rank: int
    ended: bool


Event = Asked | Received | Closed | Leash


@dataclass(frozen=True, slots=True)
class Heard:
    """The newest beat of a follower. Times are of our CLOCK_BOOTTIME."""

    link: int
    at: float
    leased_until: float
    offset: float = 0.0
    """Its monotonic clock minus ours, in seconds, and by how much that may be wrong."""
    doubt: float = float("inf")
    gap: float = 0.0
    """The seconds between the last two beats, or those that it waited for an answer, if that was more."""
    body: bytes = b""


class Hub:
    """All links of a leader. Its methods may be called by one other thread: the loop."""

    def __init__(self, address: tuple[str, int], token: bytes, lease: float | None, place: Path | None = None) -> None:
        """Listens at `address`. `lease` is in seconds; None: by the gaps between beats. The leader's own ranks have a
        lease, too, in the folder `place`. OSError if it cannot listen, or cannot make the word."""
        self._word = LeaseWord(place, writes=True) if place is not None else None
        self._listener = Listener(*address, token)
        self.port = self._listener.port
        self._asked, self._gaps = lease, Gaps()
        self._own = Lease()
        self._inbox: Inbox[Event] = Inbox()
        self._wake: Inbox[None] = Inbox()
        self._lock = threading.Lock()
        self._links: dict[int, Link] = {}
        self._nodes: dict[int, int] = {}
        """The node of each link that was admitted."""
        self._bonds: dict[int, Bond] = {}
        """Whose the connections of ranks are."""
        self._heard: dict[int, Heard] = {}
        self._offsets: dict[int, Offset] = {}
        self._until: float | None = None
        """When the thread ends."""
        self._selector = selectors.DefaultSelector()
        self._listens: set[int] = set()
        self._writers: set[int] = set()
        """The links that wait until they can write."""
        self._selector.register(self._wake.fd, selectors.EVENT_READ)
        self._let_in()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    # ── for the loop ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def fd(self) -> int:
        """Readable when take() has something."""
        return self._inbox.fd

    def take(self) -> list[Event]:
        """All events since the last call. RuntimeError if the thread has failed: then no lease is granted any more."""
        return self._inbox.take()

    def heard(self) -> Mapping[int, Heard]:
        """The newest beat of each follower that was admitted."""
        with self._lock:
            return dict(self._heard)

    @property
    def seconds(self) -> float:
        """The length of the leases that are granted now."""
        return self._gaps.length(boottime()) if self._asked is None else self._asked

    def admit(self, link: int, node: int, body: bytes) -> float:
        """The follower on that link is `node`, and gets `body`. Returns the seconds of its first lease. An older link
        of that node is closed."""
        with self._lock:
            seconds = self.seconds
            for other, whose in list(self._nodes.items()):
                if whose == node and other != link:
                    self._drop(other, "it has opened a new link")
            if link in self._links:
                self._nodes[link] = node
                self._offsets.pop(node, None)
                now = boottime()
                self._heard[node] = Heard(link, now, now + seconds)
                self._send(self._links[link], beats.welcome(seconds, body))
            return seconds

    def holds(self, link: int) -> bool:
        """Whether that link is there still."""
        with self._lock:
            return link in self._links

    def refuse(self, link: int, body: bytes) -> None:
        """The follower on that link gets `body`, and is not admitted."""
        with self._lock:
            if link in self._links:
                self._send(self._links[link], beats.NO + body)

    def send(self, node: int, body: bytes) -> None:
        """`body` goes to that node, if it is linked."""
        with self._lock:
            for link, whose in self._nodes.items():
                if whose == node:
                    self._send(self._links[link], beats.MESSAGE + body)

    def drop(self, node: int) -> None:
        """The link of that node is closed, if it has one. It may come back."""
        with self._lock:
            for link, whose in list(self._nodes.items()):
                if whose == node:
                    self._drop(link, "it was lost")

    def arm(self) -> None:
        """From now on there may be ranks on the leader's node. They end with its lease."""
        with self._lock:
            now = boottime()
            self._put(self._own.clear().granted(now, self.seconds, now).arm(now))

    def clear(self) -> None:
        """There are none any more."""
        with self._lock:
            self._put(self._own.clear())

    def close(self) -> None:
        """All that was sent has gone, as far as the others have taken it in a fifth of a second. No link is left, and
        the leader's warden ends."""
        self._until = time.monotonic() + _FAREWELL
        self._wake.put(None)
        self._thread.join()
        with self._lock:
            for link in self._links.values():
                link.close()
            self._links.clear()
            self._listener.close()
            self._selector.close()
            if self._word is not None:
                self._put(self._own.clear())
                self._word.end()
                self._word.close()
                self._word = None
        self._inbox.close()
        self._wake.close()

    # ── the thread ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while self._until is None or (time.monotonic() < self._until and self._links.keys() - self._bonds.keys()):
                self._turn()
        except BaseException as error:
            self._inbox.fail(error)

    def _turn(self) -> None:
        """Waits for the next thing, and does all that is there."""
        with self._lock:
            self._watch_writers()
            timeout = self._timeout()
        ready = self._selector.select(timeout)
        with self._lock:
            self._renew()
            numbers = [key.data for key, _ in ready]
            for number in numbers:
                if number in self._links:
                    self._serve(self._links[number])
            if None in numbers or self._is_due():
                self._wake.take()
                self._let_in()
            if self._until is not None:
                self._say_farewell()

    def _timeout(self) -> float:
        """The most seconds until there is something to do."""
        due = [at - time.monotonic() for at in (self._listener.deadline(), self._until) if at is not None]
        return max(0.0, min([*due, *([_OWN_EVERY] if self._word is not None else [])], default=60.0))

    def _is_due(self) -> bool:
        deadline = self._listener.deadline()
        return deadline is not None and time.monotonic() >= deadline

    def _let_in(self) -> None:
        """Those who have proved themselves have links."""
        # A descriptor that is closed may be another connection's at once. So none of them is kept over this.
        for fd in self._listens:
            self._selector.unregister(fd)
        for link in self._listener.accept(time.monotonic()) if self._until is None else ():
            self._links[link.number] = link
            self._selector.register(link.socket, selectors.EVENT_READ, link.number)
            self._serve(link)
        self._listens = set(self._listener.fds())
        for fd in self._listens:
            self._selector.register(fd, selectors.EVENT_READ)

    def _watch_writers(self) -> None:
        """The selector knows who waits until it can write."""
        for number in list(self._writers):
            link = self._links.get(number)
            if link is not None and link.socket.fileno() >= 0:
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.wants_write else 0)
                self._selector.modify(link.socket, events, number)
            if link is None or not link.wants_write:
                self._writers.discard(number)

    def _serve(self, link: Link) -> None:
        """All that has come on the link is told, or answered."""
        try:
            for body in link.tick():
                self._hear(link, body)
        except (LinkLost, struct.error) as error:
            self._lose(link, str(error))

    def _hear(self, link: Link, body: bytes) -> None:
        kind, node = body[:1], self._nodes.get(link.number)
        if kind == beats.BEAT and node is not None:
            self._beat(link, node, Beat.of(body))
        elif kind == beats.MESSAGE and node is not None:
            self._inbox.put(Received(node, link.number, body[1:]))
        elif kind == beats.HELLO and node is None:
            self._inbox.put(Asked(link.number, body[1:], link.peer))
        elif kind == beats.LEASH and node is None:
            bond = self._bonds[link.number] = Bond.of(body)
            self._inbox.put(Leash(bond.node, bond.attempt, bond.rank, ended=False))

    def _beat(self, link: Link, node: int, beat: Beat) -> None:
        """The lease is longer, first here, then there."""
        now, mono = boottime(), time.monotonic()
        last = self._heard[node]
        gap = max(now - last.at, beat.gap)
        self._gaps = self._gaps.seen(gap, now)
        offset = self._offsets.get(node, Offset())
        if beat.leased_at:
            offset = self._offsets[node] = offset.answered(beat.leased_at, beat.came, beat.at, mono)
        seconds = self.seconds
        until = max(last.leased_until, now + seconds)
        self._heard[node] = Heard(link.number, now, until, offset.seconds, offset.doubt, gap, beat.body)
        self._send(link, Grant(beat.sent, seconds, mono).packed())

    def _send(self, link: Link, body: bytes) -> None:
        link.send(body)
        if link.wants_write:
            self._writers.add(link.number)
            self._wake.put(None)

    def _lose(self, link: Link, why: str) -> None:
        bond = self._bonds.pop(link.number, None)
        if bond is not None and link.finished:
            self._inbox.put(Leash(bond.node, bond.attempt, bond.rank, ended=True))
        self._drop(link.number, why)

    def _drop(self, number: int, why: str) -> None:
        link = self._links.pop(number)
        self._selector.unregister(link.socket)
        link.close()
        node = self._nodes.pop(number, None)
        if node is not None:
            self._inbox.put(Closed(node, number, why))

    def _renew(self) -> None:
        """The leader's own lease is longer, unless it has run out while there were ranks."""
        if self._word is not None:
            now = boottime()
            self._put(self._own.granted(now, self.seconds, now))

    def _put(self, lease: Lease) -> None:
        self._own = lease
        if self._word is not None:
            self._word.put(lease)

    def _say_farewell(self) -> None:
        """Who has all that was sent sees the end of it. A close alone could take from it what it has not read."""
        for link in self._links.values():
            if not link.wants_write:
                link.finish()
