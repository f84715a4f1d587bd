"""Sockets that no other machine can reach."""

from __future__ import annotations

import errno
import ipaddress
import socket

_BACKLOG = 4096
"""The number of ranks that may connect at once. The kernel has its own limit (net.core.somaxconn)."""


def is_loopback(host: str) -> bool:
    """Whether every address of `host` is a loopback address. False if `host` is unknown."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(ipaddress.ip_address(address).is_loopback for address in found)


def listen(port: int = 0, host: str | None = None) -> socket.socket:
    """A socket that listens on that port (0: a free one) of the loopback interface, or of `host`, an address of this
    machine or a name for one. OSError if the port is taken, or no interface has that address."""
    if host is not None:
        family, *_, (address, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return _listen(family, str(address), port)
    try:
        return _listen(socket.AF_INET, "127.0.0.1", port)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENETUNREACH):
            raise
        # A machine with IPv6 only.
        return _listen(socket.AF_INET6, "::1", port)


def _listen(family: int, address: str, port: int) -> socket.socket:
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as way:
        # This sends nothing. An address without a route can be bound all the same.
        way.connect((address, port or 1))
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # As in torch: a port that an earlier process has closed can be used at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
