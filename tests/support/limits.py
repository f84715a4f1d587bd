"""Limits of a process that runs: as if the machine had no more descriptors, or no more memory."""

from __future__ import annotations

import itertools
import resource
import time
from pathlib import Path


def limit(pid: int, kind: int, soft: int) -> tuple[int, int]:
    """The process has that limit from now on. Returns the limits that it had."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, before[1]))
    return before


def lowest_free(pid: int) -> int:
    """The number of the process's next descriptor: those that it has for a moment alone are free in some look."""
    lasting = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    for _ in range(20):
        lasting &= {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
        time.sleep(0.01)
    return next(number for number in itertools.count() if number not in lasting)
