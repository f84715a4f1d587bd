"""How ranks agree, over gloo."""

from __future__ import annotations

import subprocess
import sys

from tests.support.jobs import environment

ENDS = """
import ctypes, os, sys
from pathlib import Path
import torch.distributed as dist
from trainer.checkpoint.group import GlooRanks

children = []
for number in range(6):
    if not (child := os.fork()):
        break
    children.append(child)
else:
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
ranks = GlooRanks()
ranks.exchange(1)
cpus = sorted(os.sched_getaffinity(0))
for task in Path("/proc/self/task").iterdir():
    os.sched_setaffinity(int(task.name), {cpus[number % len(cpus)]})
    if "runloop" in (task / "comm").read_text():
        os.setpriority(os.PRIO_PROCESS, int(task.name), 19)
sys.setswitchinterval(100)
ranks.any(True) if number % 2 else ranks.exchange(1)
ctypes.PyDLL(None).usleep(200_000)
"""
"""The threads of gloo are late: they let go of the last collective's tensors when the interpreter is about to end, and
the main thread has the GIL. In six processes, since it is not so in each."""


def test_a_process_that_ends_right_after_they_have_agreed() -> None:
    """It ends with 0."""
    done = subprocess.run([sys.executable, "-c", ENDS], env=environment(), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
