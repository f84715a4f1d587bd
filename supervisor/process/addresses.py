"""The addresses of this machine and of others: what a name stands for, what is ours, and from where we reach whom."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Callable

_SOMEWHERE = "192.0.2.1"
"""An address of nobody (RFC 5737): asked for the way there, the kernel names the interface of its default route."""


def numbers(host: str) -> list[str]:
    """The addresses that `host` stands for, those of IPv4 first; none if nobody knows it now."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    found.sort(key=lambda each: each[0] != socket.AF_INET)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_ours(number: str) -> bool:
    """Whether an interface of this machine has the address."""
    with contextlib.suppress(OSError), _socket(number) as tried:
        tried.bind((number, 0))
        return True
    return False


def towards(number: str) -> str | None:
    """The address of ours from which the kernel would reach `number`; None if there is no way. Nothing is sent."""
    with contextlib.suppress(OSError), _socket(number) as tried:
        tried.connect((number, 9))
        return str(tried.getsockname()[0])
    return None


def outward() -> str | None:
    """The address of ours at which other machines find us: that of the default route, else the first that is not the
    loopback's."""
    found = towards(_SOMEWHERE) or next(filter(None, map(_of, _interfaces())), None)
    return found if found is not None and not is_loopback(found) else None


def is_loopback(number: str) -> bool:
    return ipaddress.ip_address(number.partition("%")[0]).is_loopback


def waited_for(host: str, seconds: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> list[str]:
    """The addresses of `host`, once it has some: the name of a pod is known some seconds after the pod. None after
    `seconds`."""
    end = clock() + seconds
    while not (found := numbers(host)) and clock() < end:
        sleep(0.2)
    return found


def _socket(number: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in number else socket.AF_INET
    return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)


def _interfaces() -> list[str]:
    with contextlib.suppress(OSError):
        return [name for _, name in socket.if_nameindex() if name != "lo"]
    return []


def _of(interface: str) -> str | None:
    """The IPv4 address of an interface that is up, by netdevice(7)."""
    with contextlib.suppress(OSError), _socket("0.0.0.0") as asked:
        answer = fcntl.ioctl(asked, 0x8915, struct.pack("256s", interface.encode()))  # SIOCGIFADDR
        return socket.inet_ntoa(answer[20:24])
    return None
