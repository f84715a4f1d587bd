"""Trouble of the machine besides a full disk: slow syncs, a clock that jumps, descriptors and memory that run out. A
run goes on all the same, or is refused before it begins."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.telling.story import tell
from tests.support.limits import limit, lowest_free
from tests.support.scripts import PRINTS, STEPPING, printed
from tests.support.supervised import SUPERVISE, Run, environment
from tests.support.waiting import until

STEPPED_CLOCK = """
import datetime, itertools, sys, time
real, jumps = time.time, itertools.cycle([0, 3600, -3600, 7200, 0, -7200])
time.time = lambda: real() + next(jumps)
class Stepped(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
datetime.datetime = Stepped
from _supervisor.commands.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("what", ["descriptors", "memory"])
def test_a_supervisor_that_runs_out(run: Run, what: str) -> None:
    """A rank dies while its supervisor has no descriptors, or no memory, left: it lives, and recovers the run when it
    can."""
    run.script(PRINTS, "prints.py")
    (run.folder / "work").mkdir()
    run.start("--no-standby", "../prints.py", cwd=run.folder / "work")
    until(lambda: printed(run.folder) > 5)
    assert run.process is not None
    pid = run.process.pid
    if what == "descriptors":
        kind, soft = resource.RLIMIT_NOFILE, lowest_free(pid)
    else:
        kind, soft = resource.RLIMIT_AS, int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    before = limit(pid, kind, soft)
    os.kill(run.events("group_ready")[0]["pids"][0], signal.SIGKILL)
    if what == "descriptors":
        until(lambda: "cannot look after the run" in run.warnings())
    else:
        until(lambda: run.events("verdict") or "cannot look after the run" in run.warnings())
    assert run.process.poll() is None
    resource.prlimit(pid, kind, before)
    run.until_event("group_ready", 2)
    (run.folder / "finish").touch()
    assert run.wait() == 0
    # Without descriptors it may not see what a rank died of, but that it did.
    assert len(run.verdicts()) >= 2 and run.verdicts()[-1] == ("finished", None)


def test_too_few_descriptors_are_refused(run: Run) -> None:
    """Where a run could not have the files that it needs, nothing is started, and the limit is named."""
    run.script("print('here')")
    command = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", SUPERVISE, "launch", "--run-dir", "run", "script.py"]
    done = subprocess.run(command, cwd=run.folder, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "64 open files" in done.stderr and done.stderr.count("\n") == 1
    assert run.dir.attempts() == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which makes every fsync slow")
def test_a_slow_disk_does_not_hold_up_recovery(run: Run) -> None:
    """Each fsync of the supervisor takes minutes; a rank is killed twice, and is back both times before one is over."""
    run.script(PRINTS, "prints.py")
    (run.folder / "work").mkdir()
    run.start("../prints.py", cwd=run.folder / "work")
    until(lambda: printed(run.folder) > 5 and run.events("group_ready"))
    assert run.process is not None
    slow = ["-f", "-e", "trace=fsync", "-e", "inject=fsync:delay_enter=300000000", "-o", "/dev/null"]
    strace = subprocess.Popen(["strace", *slow, "-p", str(run.process.pid)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: strace.poll() is not None or _traced(run.process))
        if strace.poll() is not None:
            pytest.skip("strace may not attach here")
        for count in (1, 2):
            os.kill(run.events("group_ready")[-1]["pids"][0], signal.SIGKILL)
            run.until_event("group_ready", count + 1)
    finally:
        strace.terminate()
        strace.wait(30)
    assert len(run.events("verdict")) == 2
    (run.folder / "finish").touch()
    assert run.wait() == 0


def _traced(process: subprocess.Popen[str] | None) -> bool:
    assert process is not None
    return "TracerPid:\t0\n" not in Path(f"/proc/{process.pid}/status").read_text()


def test_a_clock_that_jumps(run: Run) -> None:
    """The wall clock jumps by hours, back and forth, at every look at it: a death is seen as ever, nothing else is."""
    run.script(PRINTS, "prints.py")
    run.script(STEPPED_CLOCK, "stepped.py")
    (run.folder / "work").mkdir()
    run.start(
        "--no-standby",
        "../prints.py",
        cwd=run.folder / "work",
        program=[sys.executable, str(run.folder / "stepped.py")],
    )
    until(lambda: printed(run.folder) > 20)
    os.kill(run.events("group_ready")[0]["pids"][0], signal.SIGKILL)
    run.until_event("group_ready", 2)
    (run.folder / "finish").touch()
    assert run.wait() == 0
    times = [e["ts"] for e in run.events()]
    assert times != sorted(times), "the clock did not jump"
    assert run.verdicts() == [("killed", 0), ("finished", None)]
    assert run.events("verdict")[0]["detect_s"] < 600
    report = json.loads(run.cli("report", "run", "--json").stdout)
    assert 0 < report["wall_s"] < 1800 and abs(sum(report["ledger"].values()) - report["wall_s"]) < 0.01


def test_a_reboot_is_told_by_its_name(tmp_path: Path) -> None:
    """A machine that has been up for longer than before its reboot: the monotonic clock did not go back, and still the
    time between is on the run's line."""
    day = "2026-11-%02dT00:00:00Z"
    events = [
        {"msg": "run_started", "mono": 100.0, "ts": day % 1, "boot": "a"},
        {"msg": "relaunch_scheduled", "mono": 200.0, "ts": day % 1, "counted": True, "barren": 1},
        {"msg": "run_started", "mono": 300.0, "ts": day % 2, "boot": "b"},
    ]
    story = tell(events)
    assert story.last - story.history.restarts[0] == 86400.0
    assert tell([{**event, "boot": "a"} for event in events]).last == 300.0


@pytest.mark.parametrize("mono", [10**400, float("nan"), float("inf"), -(10**400), True, "9"])
def test_a_time_that_no_clock_shows_is_none(mono: Any) -> None:
    """An event with such a time is left out, whoever wrote it; those around it are told."""
    started = {"msg": "run_started", "mono": 100.0}
    assert tell([started, {"msg": "first_step", "mono": mono, "at_mono": mono}]).started is not None


DISK_REFUSES = """
import errno, os, sys
from _supervisor.loop.briefer import Briefer
brief = Briefer.brief

def refused(self, number, *about):
    if number == 1:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return brief(self, number, *about)

Briefer.brief = refused
from _supervisor.commands.cli import run
sys.exit(run(sys.argv[1:]))
"""
"""supervise, on a machine whose disk fails while the second attempt is prepared."""


def test_an_attempt_that_cannot_be_prepared(run: Run) -> None:
    """It fails as what it is. Nothing of the attempt before it is taken for its own."""
    run.start("--nproc", "1", run.script(STEPPING), "100000", "0.01", program=[sys.executable, "-c", DISK_REFUSES])
    run.until_event("first_step")
    run.cli("inject", "run", "kill")
    run.until_event("first_step", 2)
    run.cli("stop", "run", "--now")

    assert run.wait() == 103
    of_second = [event["msg"] for event in run.events() if event["attempt"] == 1]
    assert "first_step" not in of_second and "group_ready" not in of_second
    verdicts = run.events("verdict")
    assert [verdict["cause"] for verdict in verdicts] == ["killed", "startup_error"]
    assert os.strerror(errno.EIO) in verdicts[1]["reason"]
    assert [event["attempt"] for event in run.events("attempt_started")] == [0, 2]
