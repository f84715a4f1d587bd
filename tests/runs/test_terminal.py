"""A run and the terminals that look at it: waited for, left to the background, attached to, stopped, removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from supervisor.run.folder.lock import holder, is_held
from supervisor.run.runs import load
from supervisor.run.status import status as status_of
from tests.support.launched import Launched, environment
from tests.support.supervised import SUPERVISE, Run, start
from tests.support.waiting import until

PATIENT = """
import os, time, torch
if os.environ["SUPERVISE_ATTEMPT"] in "01":
    os.kill(os.getpid(), 9)
torch.distributed.init_process_group("gloo")
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
while True:
    optimizer.step()
    time.sleep(0.02)
"""


class Terminal:
    """A command of supervise with its output in a file, as in a terminal of its own."""

    def __init__(self, run: Run, name: str, *arguments: str) -> None:
        self.path = run.folder / name
        with self.path.open("w") as out:
            self.process: subprocess.Popen[str] | Launched = start(
                [SUPERVISE, *arguments], run.folder, environment(), out, out
            )

    def until_says(self, text: str) -> None:
        until(lambda: text in self.path.read_text())


def status(run: Run) -> dict[str, Any]:
    known = load(run.dir.path)
    assert known is not None
    return status_of(known)


def steps(run: Run) -> bool:
    """Whether both ranks have stepped in the third attempt."""
    now = status(run)
    return now["attempt"] == 2 and [worker["phase"] for worker in now["workers"]] == ["train"] * 2


def test_a_run_and_its_terminals(run: Run) -> None:
    """It waits before its next try, and need not; Ctrl-Z leaves it to the background with the same ranks; whoever
    attaches may leave again, and stops it with Ctrl-C; what is over can be removed."""
    launch = run.start("--nproc", "2", "--backoff", "1h:1h", run.script(PATIENT))
    run.until_event("relaunch_scheduled", 2)
    waiting = status(run)
    assert waiting["state"] == "backoff" and waiting["next_try_s"] > 600
    run.cli("resume", "run")
    until(lambda: steps(run))
    assert not run.dir.retry.exists()

    where = run.cli("stacks", "run", "--json")
    stacks = {stack["rank"]: stack["frames"] for stack in json.loads(where.stdout)["stacks"]}
    assert set(stacks) == {0, 1}
    spent = json.loads(run.cli("stacks", "run", "--top", "1s", "--json").stdout)["samples"]
    if any(stacks.values()):  # py-spy is allowed to look
        assert all(frames[-1]["file"].endswith("script.py") for frames in stacks.values() if frames)
        assert any("script.py" in " ".join(places) for places in spent.values())
    assert "is running" in run.cli("rm", "run", check=2).stderr

    ranks = [worker["pid"] for worker in status(run)["workers"]]
    launch.send_signal(signal.SIGTSTP)
    until(lambda: "not paused" in (run.folder / "stderr").read_text())
    assert is_held(run.dir) and holder(run.dir)["pid"] == launch.pid
    launch.send_signal(signal.SIGTSTP)
    assert launch.wait(60) == 0
    assert is_held(run.dir) and holder(run.dir)["pid"] != launch.pid
    until(lambda: run.events("adopted"))
    assert [worker["pid"] for worker in status(run)["workers"]] == ranks

    first = Terminal(run, "first", "attach", "run")
    first.until_says("attached to")
    first.process.send_signal(signal.SIGTSTP)
    assert first.process.wait(60) == 0 and is_held(run.dir)
    second = Terminal(run, "second", "attach", "run")
    second.until_says("attached to")
    second.process.send_signal(signal.SIGINT)
    assert second.process.wait(120) == 103
    assert [event["state"] for event in run.events("run_ended")] == ["stopped"]
    until(lambda: not is_held(run.dir))
    run.assert_nothing_left()

    assert "is not running" in run.cli("attach", "run", check=2).stderr
    run.cli("rm", "run", "--dry-run")
    assert run.dir.run_json.exists()
    run.cli("rm", "run")
    assert not run.dir.path.exists()


def test_a_reader_that_goes_away(run: Run) -> None:
    """`launch --json | head`, `status --json | head`: the exit code is the command's own."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone, Path(os.devnull).open("w") as nowhere:
        run.script("raise SystemExit(78)")
        command = [SUPERVISE, "launch", "--run-dir", "run", "--json", "script.py"]
        assert start(command, run.folder, environment(), gone, nowhere).wait(120) == 104
        asked = [SUPERVISE, "status", "run", "--json", "--exit-code"]
        assert start(asked, run.folder, environment(), gone, nowhere).wait(60) == 104
