"""Where links come in. Whoever connects first proves that it has the token, within four seconds and in a few bytes.

A stranger costs a descriptor for that time and gets no byte. There are at most 64 of one address and 1,024 in all; then
the oldest goes. So strangers cannot keep a supervisor out: its greeting takes one round trip.
"""

from __future__ import annotations

import contextlib
import secrets
import socket

from supervisor.nodes.wire import greeting
from supervisor.nodes.wire.frames import Forged, Opener, Sealer
from supervisor.nodes.wire.link import Link
from supervisor.process.proctree import EXHAUSTED

GREETING = 2.0
"""Seconds that a caller waits for its greeting to be answered."""
HEARD = 2 * GREETING
"""Seconds after which a caller that has not proved itself is hung up on. It gives up before that, and says why."""
STRANGERS, CROWD = 64, 1024
"""The most connections of one address, and of all, that have not proved themselves."""
_ACCEPTS = 32
"""The most new connections of one look."""
_REST = 0.2
"""Seconds without new connections after the system had no descriptor or memory for one."""
_ALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 6}
"""A connection on which nothing comes is asked about after the first of these seconds, then each of the second, so many
times. A machine without power closes nothing, and the connection of a rank is silent while it lives."""
_FIRST_FRAME = 20
"""The bytes of a frame with an empty body."""


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class Listener:
    """Listens at one address of this node."""

    def __init__(self, host: str, port: int, token: bytes) -> None:
        """OSError if it cannot listen there. Port 0: any free one."""
        self._token = token
        self._socket = socket.socket(family_of(host), socket.SOCK_STREAM)
        try:
            # Connections of an earlier supervisor may still be in TIME_WAIT.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(128)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._guests: list[_Guest] = []
        self._count = 0
        self._rests_until = float("-inf")
        self._rests = False

    def fds(self) -> list[int]:
        """Readable when accept() has something to do."""
        own = [] if self._rests else [self._socket.fileno()]
        return [*own, *(guest.socket.fileno() for guest in self._guests)]

    def deadline(self) -> float | None:
        """The time of the next accept() that is due even if nothing comes."""
        rest = [self._rests_until] if self._rests else []
        return min((*rest, *(guest.until for guest in self._guests)), default=None)

    def accept(self, now: float) -> list[Link]:
        """The links whose other side has proved itself since the last look. Everybody else waits, or is gone."""
        self._let_in(now)
        found, kept = [], []
        for guest in self._guests:
            try:
                link = guest.look(self._token)
            except (greeting.Stranger, Forged, OSError):
                guest.socket.close()
                continue
            if link is not None:
                found.append(link)
            elif now < guest.until:
                kept.append(guest)
            else:
                guest.socket.close()
        self._guests = kept
        return found

    def close(self) -> None:
        for guest in self._guests:
            guest.socket.close()
        self._guests.clear()
        self._socket.close()

    def _let_in(self, now: float) -> None:
        self._rests = now < self._rests_until
        for _ in range(0 if self._rests else _ACCEPTS):
            try:
                connection, address = self._socket.accept()
            except OSError as error:
                if error.errno in EXHAUSTED:
                    # Whoever waits stays readable. So nobody is let in until some descriptors may be free again.
                    self._rests, self._rests_until = True, now + _REST
                return
            self._count += 1
            connection.setblocking(False)
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _ALIVE.items():
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)
            self._guests.append(_Guest(connection, str(address[0]), now + HEARD, self._count))
            self._make_room(str(address[0]))

    def _make_room(self, peer: str) -> None:
        """The guests are no more than may be. The oldest one goes, of that address if these are too many."""
        of_it = [guest for guest in self._guests if guest.peer == peer]
        crowded = of_it if len(of_it) > STRANGERS else self._guests if len(self._guests) > CROWD else []
        if crowded:
            crowded[0].socket.close()
            self._guests.remove(crowded[0])


class _Guest:
    """A connection whose other side has not proved itself yet."""

    def __init__(self, connection: socket.socket, peer: str, until: float, number: int) -> None:
        self.socket, self.peer, self.until, self.number = connection, peer, until, number
        self._said = b""
        self._keys: greeting.Keys | None = None

    def look(self, token: bytes) -> Link | None:
        """The link, once the other side has proved itself. Stranger, Forged or OSError if it cannot."""
        if self._keys is None:
            self._read(greeting.CALL)
            callers = greeting.heard(token, self._said)
            if callers is None:
                return None
            nonce = secrets.token_bytes(greeting.NONCE)
            self._keys, self._said = greeting.keys(token, callers, nonce), b""
            # 32 bytes always fit into the buffer of a new connection.
            self.socket.send(greeting.answer(token, callers, nonce))
        self._read(_FIRST_FRAME)
        if len(self._said) < _FIRST_FRAME:
            return None
        return self._proved(self._keys)

    def _proved(self, keys: greeting.Keys) -> Link:
        opener = Opener(keys.caller)
        if opener.feed(self._said) != [b""]:
            raise Forged("the first message is not empty")
        return Link(self.socket, Sealer(keys.listener), opener, self.peer, self.number)

    def _read(self, length: int) -> None:
        """Reads until `length` bytes are there, or nothing more is. Not one byte more: what follows is the link's."""
        try:
            while len(self._said) < length:
                data = self.socket.recv(length - len(self._said))
                if not data:
                    raise greeting.Stranger
                self._said += data
        except (BlockingIOError, InterruptedError):
            pass
