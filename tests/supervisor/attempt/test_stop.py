"""A polite stop reaches each rank once, also one that shows up only after it."""

from __future__ import annotations

import signal
import subprocess

from supervisor.attempt.attempt import Attempt
from supervisor.process.proctree import Process


def test_a_rank_that_shows_up_late_is_told_too() -> None:
    early, late = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    processes = [Process(each.pid) for each in (early, late)]
    told: set[int] = set()
    try:
        assert Attempt._tell(processes[:1], told) == 1
        assert early.wait(60) == -signal.SIGTERM and late.poll() is None
        assert Attempt._tell(processes, told) == 1
        assert late.wait(60) == -signal.SIGTERM
        assert Attempt._tell(processes, told) == 0
    finally:
        for each, process in zip((early, late), processes, strict=True):
            process.close()
            each.kill()
            each.wait()
