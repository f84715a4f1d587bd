"""Where a process is: on which machine, since which of its starts, in which pid namespace. Only there do its pids name
what they named."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")


def here() -> dict[str, str]:
    """Of this process: `host`, `boot` (tells this start of the machine from every other: CLOCK_MONOTONIC begins anew with
    each) and `pids`, the pid namespace; "" for what cannot be read."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = BOOT.read_text().strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink(NAMESPACE)  # noqa: PTH115 (a magic link: it leads to no path)
    return {"host": socket.gethostname(), "boot": boot, "pids": namespace}


def elsewhere(other: Mapping[str, object], ours: Mapping[str, str]) -> str:
    """Why a process of `other` cannot be told from here, where it is `ours`; "" if it can."""
    if other.get("host") != ours["host"]:
        return f"that ran on {other.get('host') or 'another machine'}, and this is {ours['host']}: stop it there"
    if not other.get("boot") or not other.get("pids") or not all(ours.values()):
        return "nothing tells whether that ran in this container, and since which start of the machine"
    if other["boot"] != ours["boot"]:
        return "the machine was started anew since: nothing of it can be alive"
    if other["pids"] != ours["pids"]:
        return "that ran in another container (pid namespace) of this machine: stop it there"
    return ""
