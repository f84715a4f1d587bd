"""What a process hands down to its children beside its environment and its files: limits, groups, namespaces, rights.

A process that was started by one program may work for another one only if that would have handed down the same.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

_STATUS = (
    "Umask Uid Gid Groups SigBlk SigIgn CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Cpus_allowed Mems_allowed"
).split()
_FILES = ("cgroup", "oom_score_adj", "attr/current", "timens_offsets")
_LIMITS = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))


def inherited() -> dict[str, str]:
    """What a child of this process would get now, by name. What the kernel does not tell is left out."""
    me = Path("/proc/self")
    found = {name: str(resource.getrlimit(getattr(resource, name))) for name in _LIMITS}
    for line in (me / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in _STATUS:
            found[name] = value.strip()
    for name in _FILES:
        with contextlib.suppress(OSError):
            found[name] = (me / name).read_text()
    for link in ["root", *(f"ns/{name}" for name in sorted(os.listdir("/proc/self/ns")))]:
        with contextlib.suppress(OSError):
            found[link] = str((me / link).readlink())
    policy = os.sched_getscheduler(0)
    found["nice"] = f"{os.getpriority(os.PRIO_PROCESS, 0)}, {policy}, {os.sched_getparam(0).sched_priority}"
    return found
