"""Memory of this machine and of its processes, in bytes."""

from __future__ import annotations

import contextlib
from pathlib import Path

from trainer.rundir.machine.cgroup import NoGroup, own_group


def resident(pid: int) -> int:
    """The memory that the process has in use, shared memory included. 0 if it is gone."""
    return _field(Path(f"/proc/{pid}/status"), "VmRSS:") or 0


def available() -> int | None:
    """The memory that programs may still take, of the machine and of this process' memory group (a container has one);
    None if the system does not tell."""
    room = _field(Path("/proc/meminfo"), "MemAvailable:")
    with contextlib.suppress(NoGroup):
        if room is not None and (headroom := own_group().headroom()) is not None:
            return min(room, headroom)
    return room


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
    except (OSError, ValueError, IndexError):
        return None
