"""The place of a process: the machine, its boot, and the pid namespace. A pid is valid only in one place."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")


def here() -> dict[str, str]:
    """The place of this process: `host`; `boot`, which differs at each start of the machine (CLOCK_MONOTONIC then
    begins again); `pids`, the pid namespace. "" for a value that cannot be read."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = BOOT.read_text().strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink(NAMESPACE)  # noqa: PTH115 (a magic link: it leads to no path)
    return {"host": socket.gethostname(), "boot": boot, "pids": namespace}


def elsewhere(other: Mapping[str, object], ours: Mapping[str, str]) -> str:
    """The reason why a process at the place `other` cannot be found from the place `ours`. "" if it can be found."""
    if other.get("host") != ours["host"]:
        return f"that ran on {other.get('host') or 'another machine'}, and this is {ours['host']}: stop it there"
    if not other.get("boot") or not other.get("pids") or not all(ours.values()):
        return "nothing tells whether it ran in this container, and since the last start of the machine"
    if other["boot"] != ours["boot"]:
        return "the machine was started anew since: nothing of it can be alive"
    if other["pids"] != ours["pids"]:
        return "that ran in another container (pid namespace) of this machine: stop it there"
    return ""
