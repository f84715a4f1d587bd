"""Faults asked for with --inject, or while a run is under way: each is found, has its cause, and the run goes on."""

from __future__ import annotations

import json
import signal

import pytest

from tests.support.pages import Page
from tests.support.scripts import STEPPING
from tests.support.supervised import Run

BY_ATTEMPT = """
import os, sys, time
words = [word.split(",") for word in sys.argv[1:]]
sys.argv[1:] = [each[min(int(os.environ["SUPERVISE_ATTEMPT"]), len(each) - 1)] for each in words]
open("begun" + os.environ["RANK"], "w").close()
while not all(os.path.exists(f"begun{rank}") for rank in range(int(os.environ["WORLD_SIZE"]))):
    time.sleep(0.01)
"""
"""Before STEPPING: each of its arguments is a list, with a word for each attempt. No rank is done before another has
begun."""
ENDLESS = "1000000"
"""Steps of an attempt that something else ends."""


def test_stopped_rank_is_found_with_stacks(run: Run) -> None:
    """A rank that is stopped is found, its stacks and the others' are kept, and the run goes on."""
    inject = "stop:rank=1@step=5"
    script = run.script(BY_ATTEMPT + STEPPING)
    assert run.launch("--nproc", "2", "--inject", inject, script, f"{ENDLESS},6", "0.05") == 0

    assert run.verdicts() == [("stopped", 1), ("finished", None)]
    stacks = run.dir.attempt(0).stacks
    assert all("script.py" in (stacks / f"rank{rank}.txt").read_text() for rank in range(2))


def test_hang_is_found(run: Run) -> None:
    """A rank that is alive, idle and deaf to TERM is found by its silence and killed."""
    inject = "hang:rank=0@step=5"
    assert run.launch("--hang-timeout", "3s", "--inject", inject, run.script(STEPPING), "8", "0.02") == 0

    assert run.verdicts() == [("hang", 0), ("finished", None)]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("segv", "segfault"),
        ("abort", "abort"),
        ("exit:code=9", "exception"),
        ("exc", "exception"),
        ("term", "killed"),
    ],
)
def test_fault_has_its_cause(run: Run, fault: str, cause: str) -> None:
    """Each fault that ends a process is diagnosed as what it is, fires once, and is on record."""
    assert run.launch("--inject", f"{fault}@step=3", run.script(STEPPING), "6") == 0

    assert run.verdicts() == [(cause, 0), ("finished", None)]
    assert [e["spec"] for e in run.events("fault_injected")] == [f"{fault}@step=3"]


def test_gil_holder_is_found(run: Run) -> None:
    """A rank stuck in C with the GIL held, deaf to every Python signal handler, is found and killed."""
    assert run.launch("--hang-timeout", "2s", "--inject", "gil@step=3", run.script(STEPPING), "6", "0.02") == 0

    assert run.verdicts() == [("hang", 0), ("finished", None)]


def test_launcher_killed(run: Run) -> None:
    """When torchrun itself is killed its ranks live on; they are found and ended before the next attempt."""
    script = run.script(BY_ATTEMPT + STEPPING)
    assert run.launch("--nproc", "2", "--inject", "kill-launcher@step=3", script, f"{ENDLESS},6", "0.05") == 0

    assert run.verdicts() == [("launcher_died", None), ("finished", None)]


def test_kill_supervisor_fault_keeps_the_budget(run: Run) -> None:
    """Budget and attempt number survive the supervisor's death; its own death costs no restart."""
    run.script(STEPPING)
    arguments = "--max-restarts", "5", "--inject", "kill:rank=0@step=2", "--inject", "kill-supervisor@step=4"
    run.start(*arguments, "script.py", ENDLESS, "0.02")
    assert run.process is not None and run.process.wait(60) == -signal.SIGKILL

    run.start("--inject", "kill:rank=0@step=6")
    run.until_event("attempt_started", 3)
    status = json.loads(run.cli("status", "run", "--json").stdout)
    run.cli("stop", "run", "--now")

    assert run.wait() == 103
    assert status["budget"]["used"] == 2
    assert run.dir.attempts() == [0, 1, 2]


def test_live_injection(run: Run) -> None:
    """A fault goes into a run that is under way, once; a rank may be hit by the clock as well as by the step."""
    run.start("--nproc", "2", run.script(BY_ATTEMPT + STEPPING), "60", "0.5,0.5,0.02")
    run.until_event("first_step")

    run.cli("inject", "run", "kill:rank=1")
    run.until_event("verdict")
    run.until_event("first_step", 2)
    run.cli("inject-failure", "run", "kill:rank=0@after=10ms")

    assert run.wait() == 0
    assert run.verdicts() == [("killed", 1), ("killed", 0), ("finished", None)]
    # What the supervisor has seen of a script that tells nothing makes a page with a curve.
    run.cli("report", "run", "--html", "page.html")
    page = Page((run.folder / "page.html").read_text())
    assert [curve["x"][-1] for curve in page.data["curves"] if curve["name"] == "time of a step"] == [60]
    assert [restart["cause"] for restart in page.data["restarts"]] == ["killed", "killed"]
