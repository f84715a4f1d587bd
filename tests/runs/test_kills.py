"""SIGKILL from outside at random moments, again and again, with standby and memory tier on: the same bits in the
end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.process.proctree import marked
from tests.support.jobs import TINY, final_state, same
from tests.support.scripts import HELD
from tests.support.supervised import Run
from tests.support.undisturbed import undisturbed
from tests.support.waiting import until
from trainer.rundir.machine.shm import segment_of

STEPS = 200
JOB = [*TINY, "--steps", str(STEPS), "--snapshot-every", "1", "--checkpoint-every", "7", "--keep", "2"]
BUDGET = ("--max-restarts", "1000", "--no-progress-limit", "1000", "--backoff", "1ms:1ms")
SEED = 20261124
BLOCKED = """
import sys
from _supervise.rundir.machine.shm import segment_of
from _supervisor.commands.cli import run
from _supervisor.loop.driver import Driver
take_up = Driver._take_up
def blocked(self, pace):
    segment_of(self.spec.mark).touch()
    take_up(self, pace)
Driver._take_up = blocked
sys.exit(run(sys.argv[1:]))
"""
"""A file where the folder in shared memory should be, before any rank: no room for it, whoever asks."""


@pytest.fixture(scope="module", params=[pytest.param("off", marks=pytest.mark.long), "fp16"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """(amp, final state) of a run that nobody disturbed."""
    job = ["--", *JOB, "--amp", request.param]
    return request.param, undisturbed(tmp_path_factory, f"kills-{request.param}", STEPS, job, lambda run: None)


def strike(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def over(run: Run) -> bool:
    return bool(run.events("run_ended"))


def disturb(run: Run, blows: int, blow: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """`blow` falls on each of `blows` attempts, once its ranks have registered; it gets the two events that name
    pids."""
    for number in range(1, blows + 1):
        ready = until(lambda number=number: over(run) or run.events("group_ready")[number - 1 : number])  # type: ignore[misc]
        if ready is True:
            return
        started = run.events("attempt_started")[number - 1]
        blow(started, ready[0])
        until(lambda number=number: over(run) or len(run.events("attempt_started")) > number)  # type: ignore[misc]


def kill_all_at_step_100(run: Run, amp: str) -> None:
    """A run without a checkpoint on disk, of which no process is left, the supervisor neither."""
    hold = ("--inject", "slow:rank=0,seconds=600@step=100")
    run.start("--nproc", "2", *BUDGET, *hold, "--", *JOB, "--checkpoint-every", "off", "--amp", amp)
    until(lambda: run.events("fault_injected"))
    assert run.process is not None
    strike([run.process.pid])
    run.process.wait()

    def gone() -> bool:
        # What was made while we looked is found by the next look.
        strike(found := [process.pid for process in marked(run.mark())])
        return not found

    until(gone)


def assert_undisturbed(run: Run, reference: Any) -> None:
    """The end is the reference's, bit for bit; each step has one line of metrics; a loss is never more than it may
    be."""
    assert same(final_state(run.dir.path, STEPS), reference)
    steps = [json.loads(line)["step"] for line in run.dir.metrics.read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    causes = {cause for cause, _ in run.verdicts()}
    assert causes <= {"killed", "launcher_died", "finished"}


def test_random_kills(run: Run, reference: tuple[str, Any]) -> None:
    """A rank, all ranks or the launcher, at any moment from its registration on: in restore, in a copy, in a flush,
    while the standby is in the making, while the next one is."""
    amp, expected = reference
    pick = random.Random(f"{SEED} {amp}")

    def blow(started: dict[str, Any], ready: dict[str, Any]) -> None:
        # Short waits fall into restore and first step, long ones into training.
        time.sleep(pick.choice([0.0, 0.02, 0.05, 0.1, 0.2, 0.4]) * pick.random())
        strike(pick.choice([[pick.choice(ready["pids"])], ready["pids"], [started["launcher_pid"]]]))

    # It is not over before the last blow.
    (run.folder / "hold-150").touch()
    run.start("--nproc", "2", *BUDGET, "--hang-timeout", "off", run.script(HELD), *JOB, "--amp", amp)
    disturb(run, 10, blow)
    (run.folder / "hold-150").unlink()

    assert run.wait() == 0
    assert len(run.verdicts()) >= 6
    assert_undisturbed(run, expected)


def test_kills_during_flushes(run: Run, reference: tuple[str, Any]) -> None:
    """The flush process is killed in the middle, and with it the ranks: a whole checkpoint is always there, and the run
    ends as if nothing had been."""
    amp, expected = reference

    def flushing() -> list[int]:
        return [p.pid for p in marked(f"{run.mark()}.flush")]

    def blow(started: dict[str, Any], ready: dict[str, Any]) -> None:
        caught = until(lambda: over(run) or flushing())
        if caught is not True:
            strike([*caught, ready["pids"][0]])

    run.start("--nproc", "2", *BUDGET, "--", *JOB, "--amp", amp)
    disturb(run, 3, blow)

    assert run.wait() == 0
    run.cli("ckpt", "verify", "run")
    assert_undisturbed(run, expected)


def test_memory_outlives_the_supervisor(run: Run, reference: tuple[str, Any]) -> None:
    """The supervisor and everything else of the run is killed at once: the next launch goes on from shared memory."""
    amp, expected = reference
    kill_all_at_step_100(run, amp)

    assert run.launch() == 0

    resumed = run.events("resumed")[-1]
    assert (resumed["source"], resumed["step"]) in [("memory", 98), ("memory", 99), ("memory", 100)]
    assert_undisturbed(run, expected)


def test_gc_rescues_a_snapshot(run: Run, reference: tuple[str, Any]) -> None:
    """Everything of a run is dead, and its memory is newer than its disk: gc makes a checkpoint of it before it
    goes."""
    amp, expected = reference
    kill_all_at_step_100(run, amp)

    run.cli("gc", "run", "--yes")
    run.assert_nothing_left()
    assert run.launch() == 0

    resumed = run.events("resumed")[-1]
    assert resumed["source"] == "disk" and resumed["step"] in (98, 99, 100)
    assert_undisturbed(run, expected)


def test_small_shared_memory(run: Run) -> None:
    """Without shared memory a run saves to disk as ever, says so once, and ends well."""
    program = [sys.executable, "-c", BLOCKED]
    job = ["--", *TINY, "--checkpoint-every", "4"]
    process = run.start("--nproc", "2", "--inject", "kill:rank=1@step=9", *job, program=program)
    try:
        assert process.wait(120) == 0
    finally:
        segment_of(run.mark()).unlink(missing_ok=True)

    assert [e["step"] for e in run.events("resumed")] == [0, 8]
    assert any("shm" in str(e.get("text")) for e in run.events("warning"))
