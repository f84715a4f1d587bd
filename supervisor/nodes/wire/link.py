"""A link: an authenticated connection between two supervisors. It never blocks, and it ends at the first doubt."""

from __future__ import annotations

import contextlib
import socket

from supervisor.nodes.wire.frames import Forged, Opener, Sealer

UNSENT = 8 << 20
"""The most bytes that wait to be sent. A side that does not read for so long is not served any more."""
_CHUNK = 1 << 16
_MOST = 1 << 20
"""The most bytes of one look, so that one link does not keep the others waiting."""


class LinkLost(Exception):
    """The link is closed. The text tells why."""


class Link:
    """One link, after the greeting."""

    def __init__(self, connection: socket.socket, sealer: Sealer, opener: Opener, peer: str, number: int = 0) -> None:
        """`sealer` and `opener` know the keys of this side's direction and of the other's. `peer` is an address. The
        listener numbers its links in the order in which they were opened."""
        self.socket, self.peer, self.number = connection, peer, number
        self.finished = False
        """The other side has closed it in order, or its process is gone. A reset or a time-out is none of both."""
        self._sealer, self._opener = sealer, opener
        self._unsent = bytearray()
        self._lost = ""
        self._received: list[bytes] = []

    def fds(self) -> list[int]:
        """Readable when tick() has something to do. Empty once it is closed."""
        return [self.socket.fileno()] if self.socket.fileno() >= 0 else []

    @property
    def wants_write(self) -> bool:
        """Whether something waits until the socket takes more."""
        return bool(self._unsent) and not self._lost

    def send(self, body: bytes) -> None:
        """`body` is sent as soon as the other side takes it. Nothing is sent on a link that is lost; tick() tells.
        ValueError for a body that is too long."""
        if self._lost:
            return
        self._unsent += self._sealer.seal(body)
        self._flush()

    def tick(self, now: float = 0.0) -> list[bytes]:
        """Sends what waits, and returns the bodies that have come, in order. LinkLost if the link is over, once all
        that came before its end has been returned. `now` is not used."""
        if self._unsent:
            self._flush()
        if not self._lost:
            self._read()
        received, self._received = self._received, []
        if self._lost and not received:
            self.close()
            raise LinkLost(self._lost)
        return received

    def finish(self) -> None:
        """The other side sees the end of this one once it has read all. What it still sends is read here."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """The connection is closed. What waits is not sent."""
        self._lost = self._lost or "it was closed here"
        self.socket.close()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            # The other side is gone. What it has said before is here, and may be its last word.
            self._lost = error.strerror or str(error)
            self._read()
            self.finished = False
            self._lose(self._lost)
        if len(self._unsent) > UNSENT:
            self._lose("the other side does not read")

    def _read(self) -> None:
        read = 0
        try:
            while read < _MOST:
                data = self.socket.recv(_CHUNK)
                if not data:
                    self.finished = True
                    self._lose("the other side closed it")
                    return
                read += len(data)
                self._received += self._opener.feed(data)
                if len(data) < _CHUNK:
                    return
        except (BlockingIOError, InterruptedError):
            pass
        except Forged as error:
            self._lose(str(error))
        except OSError as error:
            self._lose(error.strerror or str(error))

    def _lose(self, why: str) -> None:
        """The link is over. Its descriptor stays readable until that has been told."""
        self._lost = self._lost or why
        self._unsent.clear()
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
