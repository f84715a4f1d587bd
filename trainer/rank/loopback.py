"""Sockets that nobody outside this machine can reach."""

from __future__ import annotations

import errno
import ipaddress
import socket

_BACKLOG = 4096
"""As many ranks may come at once; the kernel has its own limit (net.core.somaxconn)."""


def is_loopback(host: str) -> bool:
    """Whether every address of `host` is this machine's own; not where nobody knows it."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(ipaddress.ip_address(address).is_loopback for address in found)


def listen(port: int = 0, host: str | None = None) -> socket.socket:
    """Listens on that port, or on a free one, of the loopback interface, or of `host`, an address of this machine or a
    name for one. OSError if it is taken, or no interface has that address."""
    if host is not None:
        family, *_, (address, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return _listen(family, str(address), port)
    try:
        return _listen(socket.AF_INET, "127.0.0.1", port)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENETUNREACH):
            raise
        # A machine of IPv6 alone.
        return _listen(socket.AF_INET6, "::1", port)


def _listen(family: int, address: str, port: int) -> socket.socket:
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as way:
        # Sends nothing. An address to which no way leads can be bound all the same.
        way.connect((address, port or 1))
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # As torch does it: what an earlier process has closed is not in the way.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
