"""What a glance at a rank tells of its wait for a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

from supervisor.process.kernel import Glance, glance
from tests.support.waiting import until

SPINS = "import os; os.sched_setaffinity(0, {%d}); print(flush=True)\nwhile True: pass"


def test_a_wait_for_a_cpu_counts_while_it_lasts() -> None:
    """The kernel tells of one when it is over. A rank that gets no CPU for seconds is not silent for so long, and no
    more is counted than the kernel tells in the end."""
    cpu = min(os.sched_getaffinity(0))
    both = [subprocess.Popen([sys.executable, "-c", SPINS % cpu], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        assert all(each.stdout is not None and each.stdout.readline() for each in both)
        rank, other = both
        # It gets hardly any while somebody else wants one.
        os.sched_setscheduler(rank.pid, os.SCHED_IDLE, os.sched_param(0))
        seen = [glance(rank.pid)]

        def waits() -> Glance | None:
            seen.append(now := glance(rank.pid, seen[-1]))
            if now.turns != seen[0].turns:
                seen[:] = [now]
            return now if now.starved > seen[0].starved + 0.1 else None

        waited = until(waits)
        other.kill()
        until(lambda: glance(rank.pid).turns != waited.turns)
        assert glance(rank.pid).starved >= waited.starved - 0.01
    finally:
        for each in both:
            each.kill()
            each.communicate()
