"""The loopback interface, where the ranks of one machine meet: its name, and whether it is up."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import socket
import struct

import psutil

from supervisor.errors import Refusal

_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_IFREQ = struct.Struct("16sH22x")


def interfaces() -> dict[str, bool]:
    """The machine's loopback interfaces: by name, whether each is up. Empty if the kernel does not tell."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
            flags = {name: _flags(asked, name) for _, name in socket.if_nameindex()}
    except OSError:
        return {}
    return {name: bool(bits & _IFF_UP) for name, bits in flags.items() if bits & _IFF_LOOPBACK}


def _flags(asked: socket.socket, name: str) -> int:
    answer = fcntl.ioctl(asked, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
    bits: int = _IFREQ.unpack(answer)[1]
    return bits


def has(local: str) -> None:
    """Refusal unless `local` is an address of this machine, or a name for one."""
    try:
        family, *_, address = socket.getaddrinfo(local, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as tried:
            tried.bind(address)
        if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_unspecified:
            raise Refusal(f"--local-addr {local}: that is every interface; give the address of one")
    except UnicodeError:
        raise Refusal(f"--local-addr {local}: that is no address") from None
    except socket.gaierror as error:
        raise Refusal(f"--local-addr {local}: {error.strerror}; give a number, as 127.0.0.1") from None
    except OSError as error:
        why = "no interface here has it (see: ip addr)" if error.errno == errno.EADDRNOTAVAIL else error.strerror
        raise Refusal(f"--local-addr {local}: {why}") from None


def chosen() -> str | None:
    """The name of the interface that the ranks use."""
    return next((name for name, up in interfaces().items() if up), None)


def needed(local: str | None) -> None:
    """Refusal if the loopback interface is down, or if no interface has the address `local`. Ranks could not reach each
    other."""
    if local is not None:
        has(local)
    found = interfaces()
    if found and not any(found.values()):
        name = next(iter(found))
        raise Refusal(f"the loopback interface {name} is down, and the ranks meet there: ip link set {name} up")


def reserved(address: str) -> socket.socket:
    """A socket that keeps a free port of `address` from all programs but one that listens there with SO_REUSEADDR.
    OSError if there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kept = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind((address, 0))
    except OSError:
        kept.close()
        raise
    return kept


def interface_of(address: str) -> str | None:
    """The name of the interface of this machine that has `address`; of a loopback address, the loopback interface."""
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return chosen()
    for name, found in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in found):
            return name
    return None
