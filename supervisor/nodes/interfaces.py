"""The addresses at which the ranks of a node call each other, where these are not the node's own (`--local-addr`).

gloo takes the first address of each interface that its variable names, NCCL's bootstrap that of the first interface
that its variable fits. That is another one than the node's if a person, a module file or an image has set the variable,
or if the interface has more than one address.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from supervisor.process import loopback

_GLOO, _NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_NVIDIA_OR_AMD = ("nvidiactl", "kfd")
_OTHERS = ("accel*", "davinci*", "dri/renderD*")
"""Devices of accelerators with whose libraries ranks may call each other. A guess: so gloo is not certain there."""
_MOST = 8
"""The most addresses that are called: nobody means more interfaces than that."""
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

Interfaces = Mapping[str, Sequence[str]]
"""The addresses of this machine's interfaces, by name in the kernel's order, those of IPv4 first."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where the ranks of a node are called beside its own address."""

    addresses: Mapping[str, str]
    """By the setting that has chosen it, as "GLOO_SOCKET_IFNAME=eth1"."""
    absent: tuple[str, ...] = ()
    """The settings that name no interface of this machine that has an address."""
    certain: frozenset[str] = frozenset()
    """Those of `addresses` that the ranks cannot do without: without a GPU they have nothing but gloo."""


def elsewhere(environ: Mapping[str, str], own: str) -> Elsewhere:
    """Of a node whose address is `own`, and whose ranks have these variables. NCCL's counts where there is a GPU."""
    dev = Path("/dev")
    gpu = any((dev / name).exists() for name in _NVIDIA_OR_AMD)
    alone = not gpu and not any(any(dev.glob(pattern)) for pattern in _OTHERS)
    return chosen(environ, own, loopback.interface_of(own), _interfaces(), gpu, alone)


def chosen(
    environ: Mapping[str, str], own: str, default: str | None, found: Interfaces, nccl: bool, alone: bool
) -> Elsewhere:
    """What torch 2.13 and NCCL 2.27 make of their variables on a machine with the interfaces `found`. The launch sets
    them to `default` where they are not set. `alone`: gloo is all that there is."""
    gloo, wanted = _setting(environ, _GLOO, default), _setting(environ, _NCCL, default) if nccl else ""
    first = {f"{_GLOO}={name}": found.get(name, ())[:1] for name in gloo.split(",") if name}
    if wanted:
        fitting = matching(wanted, found)
        # getifaddrs() tells all addresses of IPv4 before those of IPv6.
        fitting.sort(key=lambda name: ":" in found[name][0])
        first[f"{_NCCL}={wanted}"] = [found[name][0] for name in fitting[:1]]
    addresses: dict[str, str] = {}
    for setting, [address] in ((setting, them) for setting, them in first.items() if them):
        if address != own and address not in addresses.values() and len(addresses) < _MOST:
            addresses[setting] = address
    certain = frozenset(setting for setting in addresses if alone and setting.startswith(_GLOO))
    return Elsewhere(addresses, tuple(setting for setting, them in first.items() if not them), certain)


def matching(setting: str, found: Interfaces) -> list[str]:
    """The interfaces with an address that NCCL takes: those whose names begin with one of the words, or do not ("^"),
    or are one ("="), or are none ("^=")."""
    without, words = setting.startswith("^"), setting.removeprefix("^")
    exact, words = words.startswith("="), words.removeprefix("=")
    wanted = [word for word in words.split(",") if word]
    return [
        name
        for name, addresses in found.items()
        if addresses and any(name == word if exact else name.startswith(word) for word in wanted) is not without
    ]


def _setting(environ: Mapping[str, str], name: str, default: str | None) -> str:
    """Empty if nothing is told: both libraries ignore a value of one character, and choose by themselves."""
    value = environ.get(name, default or "")
    return value if len(value) > 1 else ""


def _interfaces() -> Interfaces:
    """Those that run: NCCL takes no others, and at the address of another one nobody is reached. psutil keeps the
    kernel's order."""
    running = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    return {
        name: [each.address for family in _FAMILIES for each in all_ if each.family == family and name in running]
        for name, all_ in psutil.net_if_addrs().items()
    }
