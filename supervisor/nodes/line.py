"""A follower's end of its link to the leader. One thread beats and keeps the lease, whatever the loop waits for.

    no link ── calls each 0.2 s ──> linked ── hello() ──> asked ── the leader's answer ──> admitted: it beats
       ^                                                                                        │
       └──────────────────────────── the link is lost, or the leader has refused ───────────────┘

The thread has sockets and memory, and never a file. So a disk that does not answer ends no lease.
"""

from __future__ import annotations

import enum
import select
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from supervisor.core.nodes.lease import BEAT, Lease
from supervisor.nodes.inbox import Inbox
from supervisor.nodes.lease import LeaseWord, boottime
from supervisor.nodes.leash import LeashDesk
from supervisor.nodes.wire import beats
from supervisor.nodes.wire.beats import Beat, Grant
from supervisor.nodes.wire.dialing import Dialing
from supervisor.nodes.wire.link import Link, LinkLost

_AGAIN = 0.2
"""Seconds between two calls."""
_FAREWELL = 0.2
_SILENT = 1.0
"""Seconds after the end of a lease at which a link without an answer is given up."""
_UNANSWERED = 10.0
"""The same after a hello: the leader may be busy with the last attempt."""


@dataclass(frozen=True, slots=True)
class Linked:
    """There is a link. The leader waits for hello()."""


@dataclass(frozen=True, slots=True)
class Welcomed:
    body: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The leader does not want this node. There will be no other call."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Received:
    body: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The link is lost. Nothing that came on it may be obeyed from here on."""

    why: str


@dataclass(frozen=True, slots=True)
class Fenced:
    """The lease has run out while there were ranks. They must be killed; then clear()."""


Event = Linked | Welcomed | Refused | Received | Closed | Fenced


class _Stage(enum.Enum):
    NONE = enum.auto()
    LINKED = enum.auto()
    ASKED = enum.auto()
    ADMITTED = enum.auto()
    REFUSED = enum.auto()


class Line:
    """The link to a leader, made again as often as it is lost. Its methods may be called by one other thread."""

    def __init__(self, leader: tuple[str, int], local_addr: str | None, token: bytes, place: Path) -> None:
        """Calls the leader from the address `local_addr`. The lease word and the ranks' socket are in `place`, on this
        machine. OSError if they cannot be made."""
        self.leader = f"{leader[0]}:{leader[1]}"
        self.trouble = "nobody has answered yet"
        """Why there is no link, or was none."""
        self.node: int | None = None
        """The number of this node, once the leader has told it. Set by the caller. Before, ranks get no leashes."""
        self._to, self._local, self._token = leader, local_addr, token
        self._word = LeaseWord(place, writes=True)
        self._desk = LeashDesk(place, self._call)
        self.leash = self._desk.path
        """The socket where ranks get their leashes."""
        self._lease, self._told_fence = Lease(), False
        self._inbox: Inbox[Event] = Inbox()
        self._wake: Inbox[None] = Inbox()
        self._lock = threading.Lock()
        self._stage = _Stage.NONE
        self._dialing: Dialing | None = None
        self._link: Link | None = None
        self._call_at = self._beat_at = 0.0
        self._leased: tuple[float, float] = (0.0, 0.0)
        self._answered = 0.0
        """When the newest beat was sent that was answered."""
        self._heard_until = 0.0
        """Until when the newest answer is good. It may have come late: then, when it came."""
        self._gap = 0.0
        self._body = b""
        self._until: float | None = None
        self._thread = threading.Thread(target=self._run, name="line", daemon=True)
        self._thread.start()

    # ── for the loop ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def fd(self) -> int:
        """Readable when take() has something."""
        return self._inbox.fd

    def take(self) -> list[Event]:
        """All events since the last call. RuntimeError if the thread has failed."""
        return self._inbox.take()

    def hello(self, body: bytes) -> None:
        """Says hello on the new link."""
        with self._lock:
            if self._stage is _Stage.LINKED:
                self._stage, self._answered = _Stage.ASKED, boottime()
                self._send(beats.HELLO + body)

    def send(self, body: bytes) -> None:
        """`body` goes to the leader, if this node is admitted."""
        with self._lock:
            if self._stage is _Stage.ADMITTED:
                self._send(beats.MESSAGE + body)

    def beat(self, body: bytes) -> None:
        """The next beats carry `body`."""
        self._body = body

    def arm(self) -> None:
        """From now on there may be ranks. They end with the lease. ValueError if this node has none."""
        with self._lock:
            self._put(self._lease.arm(boottime()))
            self._told_fence = False

    def clear(self) -> None:
        """There are no ranks any more."""
        with self._lock:
            self._put(self._lease.clear())

    @property
    def leased(self) -> bool:
        """Whether this node has a lease."""
        return boottime() < self._lease.until

    def close(self) -> None:
        """What was sent has gone, as far as the leader has taken it in a fifth of a second. There is no link, no lease,
        and no warden any more."""
        self._until = time.monotonic() + _FAREWELL
        self._wake.put(None)
        self._thread.join()
        with self._lock:
            for each in (self._link, self._dialing):
                if each is not None:
                    each.close()
            self._desk.close()
            self._put(self._lease.clear())
            self._word.end()
            self._word.close()
        self._inbox.close()
        self._wake.close()

    # ── the thread ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while self._until is None or (self._link is not None and time.monotonic() < self._until):
                self._sleep()
                with self._lock:
                    self._wake.take()
                    self._turn(time.monotonic())
        except BaseException as error:
            self._inbox.fail(error)

    def _sleep(self) -> None:
        """Until something can be done."""
        poll = select.poll()
        poll.register(self._wake.fd, select.POLLIN)
        with self._lock:
            for fd, writes in self._waits():
                poll.register(fd, select.POLLOUT if writes else select.POLLIN)
            seconds = self._timeout(time.monotonic())
        # A link that sends also listens: what it waits for may be the other side's reading.
        poll.poll(max(1.0, seconds * 1000))

    def _waits(self) -> list[tuple[int, bool]]:
        found = self._desk.waits()
        if self._dialing is not None:
            found += [(fd, not self._dialing.connected) for fd in self._dialing.fds()]
        if self._link is not None:
            found += [(fd, self._link.wants_write) for fd in self._link.fds()]
        return found

    def _timeout(self, now: float) -> float:
        """The most seconds until something is due."""
        due = [1.0]
        if (rested := self._desk.deadline()) is not None:
            due.append(rested - now)
        if self._stage is _Stage.ADMITTED:
            due.append(self._beat_at - now)
        if self._stage is _Stage.NONE:
            due.append((self._call_at if self._dialing is None else self._dialing.until) - now)
        if self._lease.armed and not self._told_fence:
            due.append(self._lease.until - boottime())
        if self._until is not None or any(writes for _, writes in self._waits()):
            due.append(0.02)
        return max(0.0, min(due))

    def _turn(self, now: float) -> None:
        if self._lease.fenced(boottime()) and not self._told_fence:
            self._told_fence = True
            self._inbox.put(Fenced())
        self._desk.tick(self.node, now)
        try:
            if self._link is not None:
                # What has come is heard first: it may be the leader's last word, and this process may have stood still.
                self._serve(self._link, now)
                self._unless_silent()
            elif self._stage is _Stage.NONE and self._until is None:
                self._dial(now)
        except (LinkLost, struct.error) as error:
            self._lose(str(error))

    def _unless_silent(self) -> None:
        """LinkLost if nothing has come for so long that nothing will: a machine without power closes no connection."""
        admitted = self._stage is _Stage.ADMITTED
        # Not by the lease: one that has run out with ranks stays as it is, whatever a leader answers.
        until = self._heard_until + _SILENT if admitted else self._answered + _UNANSWERED
        if boottime() >= until and self._stage is not _Stage.REFUSED:
            raise LinkLost("the leader is silent")

    def _call(self, now: float) -> Dialing:
        return Dialing(*self._to, self._token, now, self._local)

    def _dial(self, now: float) -> None:
        """Calls the leader, and has a link when it has answered. LinkLost if it has not."""
        if self._dialing is None:
            if now < self._call_at:
                return
            self._call_at = now + _AGAIN
            self._dialing = self._call(now)
        self._link = self._dialing.tick(now)
        if self._link is not None:
            self._dialing, self._stage = None, _Stage.LINKED
            self._leased, self._answered, self._gap = (0.0, 0.0), boottime(), 0.0
            self._inbox.put(Linked())

    def _serve(self, link: Link, now: float) -> None:
        if self._stage is _Stage.ADMITTED and now >= self._beat_at and self._until is None:
            self._beat_at = now + BEAT
            self._gap = max(self._gap, boottime() - self._answered)
            sent, gap = boottime(), self._gap
            self._send(Beat(sent, time.monotonic(), *self._leased, gap, self._body).packed())
        for body in link.tick():
            self._hear(body)
        if self._until is not None and not link.wants_write:
            link.finish()

    def _hear(self, body: bytes) -> None:
        kind, text = body[:1], body[1:]
        if kind == beats.LEASE:
            self._granted(Grant.of(body))
        elif kind == beats.MESSAGE:
            self._inbox.put(Received(text))
        elif kind == beats.WELCOME:
            seconds, text = beats.welcomed(body)
            self._stage, self._beat_at, now = _Stage.ADMITTED, 0.0, boottime()
            self._heard_until = max(now, self._answered + seconds)
            self._put(self._lease.granted(self._answered, seconds, now))
            self._inbox.put(Welcomed(text))
        elif kind == beats.NO:
            self._stage = _Stage.REFUSED
            self._inbox.put(Refused(text))

    def _granted(self, grant: Grant) -> None:
        now = boottime()
        self._leased = (grant.at, time.monotonic())
        self._gap, self._answered = now - self._answered, grant.sent
        self._heard_until = max(now, grant.sent + grant.seconds)
        self._put(self._lease.granted(grant.sent, grant.seconds, now))

    def _put(self, lease: Lease) -> None:
        self._lease = lease
        self._word.put(lease)

    def _send(self, body: bytes) -> None:
        if self._link is not None:
            self._link.send(body)
            if self._link.wants_write:
                self._wake.put(None)

    def _lose(self, why: str) -> None:
        self.trouble = why
        if self._link is not None:
            self._link.close()
            self._inbox.put(Closed(why))
        if self._stage is not _Stage.REFUSED:
            self._stage = _Stage.NONE
        self._link = self._dialing = None
