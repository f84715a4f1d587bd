"""A call to a listener, until it is a link. It never blocks."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
from typing import NoReturn

from supervisor.nodes.wire import greeting
from supervisor.nodes.wire.frames import Opener, Sealer
from supervisor.nodes.wire.link import Link, LinkLost
from supervisor.nodes.wire.listener import GREETING, family_of


class Dialing:
    """A connection on its way to a link."""

    def __init__(self, host: str, port: int, token: bytes, now: float, local: str | None = None) -> None:
        """The call has begun, from the address `local` if one is given. LinkLost if it cannot."""
        self._token, self._nonce = token, secrets.token_bytes(greeting.NONCE)
        self.until = now + GREETING
        self.peer = host
        self.connected = False
        self._said = b""
        try:
            self.socket = socket.socket(family_of(host), socket.SOCK_STREAM)
        except OSError as error:
            # Without a descriptor or memory now: whoever calls again may have them.
            raise LinkLost(error.strerror or str(error)) from None
        try:
            self.socket.setblocking(False)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if local is not None:
                self.socket.bind((local, 0))
            self._check(self.socket.connect_ex((host, port)))
        except OSError as error:
            self._lose(error.strerror or str(error))

    def fds(self) -> list[int]:
        """While it is not `connected`: writable, afterwards: readable, when tick() has something to do."""
        return [self.socket.fileno()] if self.socket.fileno() >= 0 else []

    def tick(self, now: float) -> Link | None:
        """The link, once the other side has answered. LinkLost if nobody is there, or nobody with the token."""
        try:
            if not self.connected and not self._connect():
                self._expire(now, "nobody answers")
                return None
            self._read(now)
        except OSError as error:
            self._lose(error.strerror or str(error))
        if len(self._said) < greeting.ANSWER:
            self._expire(now, "it does not prove that it has the token of this run")
            return None
        try:
            keys = greeting.answered(self._token, self._nonce, self._said)
        except greeting.Stranger:
            self._lose("it does not have the token of this run")
        link = Link(self.socket, Sealer(keys.caller), Opener(keys.listener), self.peer)
        link.send(b"")
        return link

    def close(self) -> None:
        self.socket.close()

    def _connect(self) -> bool:
        try:
            self.socket.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            self._check(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            return False
        self.connected = True
        self.socket.send(greeting.call(self._token, self._nonce))
        return True

    def _check(self, code: int) -> None:
        if code not in (0, errno.EINPROGRESS):
            self._lose(os.strerror(code))

    def _read(self, now: float) -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while len(self._said) < greeting.ANSWER:
                data = self.socket.recv(greeting.ANSWER - len(self._said))
                if not data and now >= self.until:
                    # It had waited long enough for us, who look late: it may well have the token.
                    return
                if not data:
                    self._lose("it closed the connection: it does not have the token of this run")
                self._said += data

    def _expire(self, now: float, why: str) -> None:
        if now >= self.until:
            self._lose(f"{why} within {GREETING:g} s")

    def _lose(self, why: str) -> NoReturn:
        self.socket.close()
        raise LinkLost(why) from None


def connect(host: str, port: int, token: bytes, now: float, local: str | None = None) -> Dialing:
    """A call to the listener at that address. LinkLost if it fails at once."""
    return Dialing(host, port, token, now, local)
