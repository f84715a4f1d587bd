"""Kill anything, any time, and the built-in trainer ends with the same bits: weights, optimizer, scaler, RNG and
metrics."""

from __future__ import annotations

import json
import random
import signal
from typing import Any

import pytest

from supervisor.run.runs import load
from supervisor.run.status import status
from tests.support.jobs import TINY, final_state, same
from tests.support.scripts import HELD
from tests.support.supervised import Run
from tests.support.undisturbed import undisturbed
from tests.support.waiting import until
from trainer.rundir.layout import committed_steps

STEPS = 24
JOB = [*TINY, "--steps", str(STEPS), "--checkpoint-every", "4"]
SEED = 20261124
BUDGET = ("--max-restarts", "20", "--no-progress-limit", "20")


@pytest.fixture(scope="module", params=[pytest.param("off", marks=pytest.mark.long), "fp16"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """(amp, final state) of a run that nobody disturbed."""
    job = ["--", *JOB, "--amp", request.param]
    return request.param, undisturbed(tmp_path_factory, f"promises-{request.param}", STEPS, job, lambda run: None)


def assert_same(run: Run, reference: Any) -> None:
    """The run's end is the reference's, bit for bit, and its metrics have each step once."""
    assert same(final_state(run.dir.path, STEPS), reference)
    steps = [json.loads(line)["step"] for line in run.dir.metrics.read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


def faults(*specs: str) -> list[str]:
    return [part for spec in specs for part in ("--inject", spec)]


def test_killed_ranks_and_launcher(run: Run, reference: tuple[str, Any]) -> None:
    """Rank 0, rank 1, all ranks and the launcher are killed, each at a random step: the same bits."""
    amp, expected = reference
    pick = random.Random(f"{SEED} {amp}")
    steps = sorted(pick.sample(range(1, STEPS), 4))
    blows = ["kill:rank=0", "kill:rank=1", "kill:rank=all", "kill-launcher"]
    pick.shuffle(blows)
    specs = [f"{blow}@step={step}" for blow, step in zip(blows, steps, strict=True)]

    assert run.launch("--nproc", "2", *BUDGET, *faults(*specs), "--", *JOB, "--amp", amp) == 0, specs

    assert len(run.events("fault_injected")) >= 4
    assert_same(run, expected)
    # What the ranks have told people: the last line of the metrics, and how many steps there are to be.
    known = load(run.dir.path)
    assert known is not None
    last, shown = json.loads(run.dir.metrics.read_text().splitlines()[-1]), status(known)
    assert (shown["step"], shown["total"], shown["loss"], shown["lr"]) == (STEPS, STEPS, last["loss"], last["lr"])
    # A run this short may end between two looks, and then nobody has seen how long a step takes.
    assert (shown["step_ms"] or 1.0) > 0.0 and shown["eta_s"] is shown["doing"] is None


def test_killed_supervisor_and_stop(run: Run, reference: tuple[str, Any]) -> None:
    """The supervisor is killed, the next one preempted, the one after that stopped: the same bits in the end."""
    amp, expected = reference

    def hold(step: int, before: int = 0) -> None:
        """The ranks go on from `before`, and wait after `step`."""
        (run.folder / f"hold-{step}").touch()
        (run.folder / f"hold-{before}").unlink(missing_ok=True)

    # A rank tells of a step when it has left the optimizer: at the wait after the seventh, the sixth is told.
    hold(7)
    fault = faults("kill-supervisor@step=6")
    run.start("--nproc", "2", "--hang-timeout", "off", *fault, run.script(HELD), *JOB, "--amp", amp)
    assert run.process is not None and run.process.wait(120) == -signal.SIGKILL

    process = run.start()
    run.until_event("adopted")
    hold(14, before=7)
    until((run.folder / "held-14").exists)
    process.send_signal(signal.SIGTERM)
    assert run.wait() == 75
    preempted_at = committed_steps(run.dir.checkpoints)[-1]
    assert preempted_at >= 14

    hold(19, before=14)
    process = run.start()
    until((run.folder / "held-19").exists)
    process.send_signal(signal.SIGINT)
    assert run.wait() == 103
    assert committed_steps(run.dir.checkpoints)[-1] > preempted_at

    (run.folder / "hold-19").unlink()
    run.cli("resume", "run", "--quiet")
    assert_same(run, expected)


def test_hurt_checkpoints(run: Run, reference: tuple[str, Any]) -> None:
    """A torn and a flipped checkpoint are seen before use and put aside, an older one is used; a full disk costs one
    save."""
    amp, expected = reference
    specs = [
        "torn:checkpoint=latest@step=9",
        "kill:rank=1@step=10",
        "corrupt:checkpoint=latest@step=14",
        "kill:rank=0@step=15",
    ]
    full = "enospc:rank=1@step=18"

    disk_only = ["--snapshot-every", "off"]
    assert run.launch("--nproc", "2", *BUDGET, *faults(*specs, full), "--", *JOB, *disk_only, "--amp", amp) == 0

    assert len(run.events("checkpoint_quarantined")) == 2
    assert [e["step"] for e in run.events("resumed")] == [0, 4, 8]
    assert [e["step"] for e in run.events("checkpoint_failed")] == [20]
    assert_same(run, expected)


def test_frozen_rank(run: Run, reference: tuple[str, Any]) -> None:
    """A rank that is stopped, one that hangs and one that holds the GIL are found and killed: the same bits."""
    amp, expected = reference
    specs = ["stop:rank=1@step=6", "hang:rank=0@step=11", "gil:rank=1@step=17"]

    assert run.launch("--nproc", "2", *BUDGET, "--hang-timeout", "4s", *faults(*specs), "--", *JOB, "--amp", amp) == 0

    assert [cause for cause, _ in run.verdicts()] == ["stopped", "hang", "hang", "finished"]
    assert_same(run, expected)


def test_resume_must_and_never(run: Run) -> None:
    """`must` without a checkpoint starts nothing; `never` begins anew and loses nothing."""
    refused = run.cli("launch", "--run-dir", "run", "--resume", "must", "--", *JOB, check=2)
    assert "no checkpoint" in refused.stderr and run.dir.attempts() == []

    assert run.launch("--resume", "never", "--", *TINY, "--steps", "4", "--checkpoint-every", "2") == 0
    assert run.launch("--resume", "never", "--", *TINY, "--steps", "3", "--checkpoint-every", "3") == 0
    assert committed_steps(run.dir.checkpoints) == [3]
    assert [event["step"] for event in run.events("run_ended")] == [4, 3]
    kept = [path for path in run.dir.checkpoints.rglob("step-*") if path.parent != run.dir.checkpoints]
    assert {path.name for path in kept} >= {"step-00000002", "step-00000004"}


def test_other_shape_is_refused_and_loses_nothing(run: Run) -> None:
    """Checkpoints of another shape are of no use: 104 at once, the first tensor named, the checkpoints untouched."""
    assert run.launch("--", *TINY, "--steps", "4") == 0
    before = sorted(p.name for p in run.dir.checkpoints.rglob("*"))

    assert run.launch("--", *TINY, "--steps", "8", "--n-embd", "32") == 104

    assert sorted(p.name for p in run.dir.checkpoints.rglob("*")) == before
    verdict = run.events("verdict")[-1]
    assert verdict["cause"] == "checkpoint_bad" and "shape" in verdict["reason"] and "wte.weight" in verdict["reason"]
