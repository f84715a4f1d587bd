"""Programs in a pid namespace of their own, where the next pid can be chosen: so a pid is that of another process
soon."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.supervised import ROOT
from tests.support.waiting import TIME_LIMIT

_ALONE = ["unshare", "-Urpf", "--kill-child", "--mount-proc"]
_BEGIN = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from tests.support.waiting import until
from trainer.rundir.machine.proc import stat

def next_is(pid, old):
    "The next process has the pid of one that began at `old`, and a start time of its own."
    until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") > old + 2)
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
"""


def said(program: str) -> Any:
    """What `program` prints, as JSON. It is the first process of its namespace, and all that it starts ends with it.
    It can use until(), stat(), and next_is(pid, start time)."""
    if subprocess.run([*_ALONE, "sh", "-c", "echo 9 > /proc/sys/kernel/ns_last_pid"], check=False).returncode:
        pytest.skip("this user may make no pid namespace")
    command = [*_ALONE, sys.executable, "-c", _BEGIN + program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
