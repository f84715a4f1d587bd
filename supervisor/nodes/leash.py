"""The leash: one connection of each rank to the leader, which ends when the rank's process does.

The follower opens and proves it, and hands it to the rank over a local socket, PLACE/leash. So no rank ever has the
token, and the leader sees a rank's end even if everything else on that node is dead. The rank's half is
trainer/rank/leash.py. It is for speed only: without one, the lease decides.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from supervisor.nodes.wire.beats import Bond
from supervisor.nodes.wire.dialing import Dialing
from supervisor.nodes.wire.link import Link, LinkLost
from supervisor.process.proctree import EXHAUSTED

_CREDENTIALS = struct.Struct("3i")
_LINE = 48
"""The most bytes of what a rank asks for: `ATTEMPT RANK`, and a newline."""
_MOST = 1024
_REST = 0.1
"""Seconds without new customers after the system had no descriptor or memory for one. They wait for half a second."""


class _Customer:
    """A rank that has asked for its leash."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self.socket, self.until = connection, until
        self.said = b""
        self.dialing: Dialing | None = None
        self.link: Link | None = None

    def close(self) -> None:
        for each in (self.link, self.dialing, self.socket):
            if each is not None:
                each.close()


class LeashDesk:
    """Gives leashes to the ranks of this node. Nothing here blocks."""

    TIME_LIMIT = 2.0
    """Seconds that a rank's leash may take."""

    def __init__(self, place: Path, call: Callable[[float], Dialing]) -> None:
        """`call` begins a call to the leader. OSError if there can be no socket in `place`."""
        self._call = call
        self._customers: list[_Customer] = []
        self._rests_until: float | None = None
        self.path = place / "leash"
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The name of a socket has at most 107 bytes. So the folder is named by its descriptor.
            self._socket.bind(f"/proc/self/fd/{folder}/leash")
            self._socket.listen(128)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise
        finally:
            os.close(folder)

    def waits(self) -> list[tuple[int, bool]]:
        """(descriptor, whether it waits until it can write) of all that tick() waits for."""
        found = [(self._socket.fileno(), False)] if self._has_room else []
        for customer in self._customers:
            if customer.dialing is None:
                found.append((customer.socket.fileno(), False))
            else:
                found += [(fd, not customer.dialing.connected) for fd in customer.dialing.fds()]
        return found

    def deadline(self) -> float | None:
        """The time of the next tick() that is due even if nothing comes."""
        return self._rests_until

    def tick(self, node: int | None, now: float) -> None:
        """Every rank gets its leash as far as it can. `node` is the number of this one; without it nobody does."""
        self._let_in(now)
        for customer in list(self._customers):
            try:
                done = self._serve(customer, node, now)
            except (LinkLost, OSError, ValueError, struct.error):
                done = True
            if done or now >= customer.until:
                customer.close()
                self._customers.remove(customer)

    def close(self) -> None:
        for customer in self._customers:
            customer.close()
        self._customers.clear()
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _let_in(self, now: float) -> None:
        if self._rests_until is not None and now >= self._rests_until:
            self._rests_until = None
        try:
            while self._has_room:
                connection, _ = self._socket.accept()
                connection.setblocking(False)
                _, user, _ = _CREDENTIALS.unpack(
                    connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                )
                if user == os.geteuid():
                    self._customers.append(_Customer(connection, now + self.TIME_LIMIT))
                else:
                    connection.close()
        except OSError as error:
            if error.errno in EXHAUSTED:
                # Whoever waits stays readable. So nobody is let in until some descriptors may be free again.
                self._rests_until = now + _REST

    @property
    def _has_room(self) -> bool:
        return self._rests_until is None and len(self._customers) < _MOST

    def _serve(self, customer: _Customer, node: int | None, now: float) -> bool:
        """Whether it has got its leash. LinkLost, OSError, ValueError or struct.error if it cannot."""
        if customer.dialing is None:
            with contextlib.suppress(BlockingIOError):
                said = customer.socket.recv(_LINE)
                if not said or node is None:
                    raise ValueError("nobody asks, or nobody can answer")
                customer.said += said
            if not customer.said.endswith(b"\n"):
                return len(customer.said) >= _LINE
            customer.dialing = self._call(now)
        if customer.link is None:
            customer.link = customer.dialing.tick(now)
            if customer.link is None:
                return False
            attempt, rank = map(int, customer.said.split())
            assert node is not None
            customer.link.send(Bond(node, attempt, rank).packed())
        # A few bytes on a new connection: its buffer has taken them.
        socket.send_fds(customer.socket, [b"!"], [customer.link.socket.fileno()])
        return True
