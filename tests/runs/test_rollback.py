"""Runs that go back: past a NaN, by hand-made policy, with kills in between, and how they give up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.jobs import TINY, final_state, same, state_of, write
from tests.support.supervised import Run
from trainer.checkpoint.disk.restore import Bad, Tiers, load, restore
from trainer.checkpoint.disk.save import Order, save
from trainer.checkpoint.errors import NoUsableCheckpoint
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.guard import joined
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.state import capture_rank
from trainer.rundir.files.durable import DISK
from trainer.rundir.layout import committed_steps, step_name
from trainer.rundir.records.rollback import Rollback

STEPS = 24
JOB = [*TINY, "--steps", str(STEPS), "--checkpoint-every", "4"]
FROM_DISK = [*JOB, "--snapshot-every", "off"]


def test_restore_goes_back_and_never_to_nothing(tmp_path: Path) -> None:
    """What an order covers is put aside, a newer attempt's is not; where it would leave nothing, nothing is moved."""
    for step in (4, 8, 12):
        write(tmp_path, step)
    ranks = Ranks()

    with pytest.raises(NoUsableCheckpoint, match="before step 3"):
        restore(Tiers(tmp_path, rollback=Rollback(0, 3, 0)), "auto", ranks, DISK)
    assert committed_steps(tmp_path) == [4, 8, 12]

    newer = save(Order(tmp_path, 16, pack(state_of(16)), capture_rank(0), attempt=1), ranks, DISK)
    assert newer.error is None
    heard: list[Bad] = []
    loaded = restore(Tiers(tmp_path, rollback=Rollback(0, 8, 0)), "auto", ranks, DISK, heard.append)

    assert loaded is not None
    assert loaded.manifest.step == 16
    assert committed_steps(tmp_path) == [4, 16]
    assert [bad.path.name for bad in heard if bad.path] == [step_name(8), step_name(12)]
    again = restore(Tiers(tmp_path, rollback=Rollback(1, 16, 0)), "auto", ranks, DISK)
    assert again is not None
    assert again.manifest.step == 4


def launch(run: Run, job: list[str], *options: str) -> int:
    return run.launch("--nproc", "2", *options, "--", *job)


def poisoned(step: int) -> tuple[str, ...]:
    """On both ranks: if only one is, they differ, and that may be found first."""
    return "--inject", f"nan:rank=0@step={step}", "--inject", f"nan:rank=1@step={step}"


def assert_whole(run: Run) -> None:
    """Metrics have each step once and nothing that is not finite, and the final weights are finite."""
    lines = [json.loads(line) for line in run.dir.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert not [line for line in lines if None in line.values()]
    model = load(run.dir.checkpoints / step_name(STEPS), 0).shared["model"]
    assert all(bool(torch.isfinite(value).all()) for value in model.values())


def skipped(run: Run) -> list[list[int]]:
    """The windows that the events tell of, joined."""
    skip: tuple[tuple[int, int], ...] = ()
    for event in run.events("data_skipped"):
        skip = joined(skip, (event["from"], event["to"]))
    return [list(window) for window in skip]


def recorded(run: Run) -> Any:
    return load(run.dir.checkpoints / step_name(STEPS), 0).shared["guard"]["skip"]


def test_nan_is_gone_back_from_with_the_same_bits(tmp_path: Path) -> None:
    """A NaN after step 10: back to the checkpoint of 8, past the data of 8 to 12. With kills before anything new is
    saved and later: the same bits, and the same window on record."""
    plain, killed = Run(tmp_path / "plain"), Run(tmp_path / "killed")
    try:
        for run in (plain, killed):
            run.folder.mkdir()
        nan = poisoned(10)
        assert launch(plain, FROM_DISK, *nan) == 0
        kills = [part for step in (11, 17) for part in ("--inject", f"kill:rank=0@step={step}")]
        assert launch(killed, FROM_DISK, *nan, *kills) == 0

        assert plain.verdicts()[0][0] == "nan"
        assert [e["do"] for e in plain.events("relaunch_scheduled")] == ["rollback"]
        assert [cause for cause, _ in killed.verdicts()] == ["nan", "killed", "killed", "finished"]
        assert [(e["from"], e["to"], e["step"]) for e in killed.events("data_skipped")] == [(8, 13, 8)] * 2
        for run in (plain, killed):
            assert_whole(run)
            assert recorded(run) == skipped(run) == [[8, 13]]
        assert same(final_state(plain.dir.path, STEPS), final_state(killed.dir.path, STEPS))
    finally:
        plain.kill()
        killed.kill()


def test_a_poisoned_snapshot_is_left_behind(run: Run) -> None:
    """The snapshot of the step before the NaN has it already, and may be on disk too: the run goes further back, until
    it finds a state that is whole, and nothing poisoned is left among its checkpoints."""
    # The slow step gives the flush of step 8 its time: without any older checkpoint, the run would rightly give up.
    faults = ("--inject", "slow:rank=0,seconds=3s@step=9", *poisoned(12))
    assert launch(run, [*JOB, "--snapshot-every", "1"], *faults) == 0

    causes = [cause for cause, _ in run.verdicts()]
    assert causes == ["nan"] * (len(causes) - 1) + ["finished"]
    assert 2 <= len(causes) <= 4
    assert_whole(run)
    assert recorded(run) == skipped(run)
    for step in committed_steps(run.dir.checkpoints):
        model = load(run.dir.checkpoints / step_name(step), 0).shared["model"]
        assert all(bool(torch.isfinite(value).all()) for value in model.values())


def test_restart_older_passes_over_memory(run: Run, tmp_path: Path) -> None:
    """`exception = "restart-older"`: from a checkpoint before the newest state, though memory has a newer one; and
    because no data is skipped, with the bits of a run that nothing happened to."""
    reference = Run(tmp_path / "reference")
    reference.folder.mkdir()
    job = [*JOB, "--snapshot-every", "1"]
    (run.folder / "supervise.toml").write_text('[policy]\nexception = "restart-older"\n')
    try:
        assert launch(reference, job) == 0
        assert launch(run, job, "--inject", "exc:rank=0@step=15") == 0

        (scheduled,) = run.events("relaunch_scheduled")
        assert (scheduled["do"], scheduled["counted"]) == ("restart-older", True)
        resumed = run.events("resumed")[1]
        assert resumed["step"] < scheduled["rollback"]["before"] <= scheduled["checkpoint_step"]
        assert run.events("data_skipped") == []
        assert same(final_state(run.dir.path, STEPS), final_state(reference.dir.path, STEPS))
        assert json.loads(run.dir.run_json.read_bytes())["actions"]["exception"] == "restart-older"
        shown = json.loads(run.cli("policy", "run", "--json").stdout)["rules"]
        assert [rule["do"] for rule in shown if rule["overridden"]] == ["restart-older"]
    finally:
        reference.kill()


SICK = """
import torch
from trainer.checkpoint import Checkpointer
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ckpt = Checkpointer(model=model, optimizer=optimizer, every=2, snapshot_every=None)
for step in range(ckpt.restore(), 30):
    data = ckpt.data_step(step)
    print("step", step, "data", data, flush=True)
    optimizer.step()
    ckpt.step(step + 1, loss=float("nan") if BAD else 1.0)
ckpt.close()
"""


def test_a_script_passes_over_bad_data(run: Run) -> None:
    """Two bad batches in a loop of the user's own, who takes data by data_step(): each is gone around, none is met
    twice."""
    run.script(SICK.replace("BAD", "data in (9, 19)"))

    assert run.launch("script.py") == 0

    assert [cause for cause, _ in run.verdicts()] == ["nan", "nan", "finished"]
    logs = [run.dir.attempt(n).rank_log(0).read_text() for n in run.dir.attempts()]
    assert [sum(f"data {bad}\n" in log for log in logs) for bad in (9, 19)] == [1, 1]


def test_a_spike_is_gone_around(run: Run) -> None:
    """With `spike`, losses that jump and stay are as bad as NaN: back to before they did, and past that data."""
    loss = "9.0 if 60 <= data < 65 else 3.0 + 0.01 * (data % 7)"
    text = SICK.replace('float("nan") if BAD else 1.0', loss).replace("every=2", "every=10, spike=10.0")
    run.script(text.replace("ckpt.restore(), 30", "ckpt.restore(), 80"))

    assert run.launch("script.py") == 0

    assert [cause for cause, _ in run.verdicts()] == ["nan", "finished"]
    (skipped_data,) = run.events("data_skipped")
    assert (skipped_data["step"], skipped_data["from"], skipped_data["to"]) == (60, 60, 66)


DRIFTS = """
import os, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from trainer.checkpoint import Checkpointer
dist.init_process_group("gloo")
torch.manual_seed(0)
model = DistributedDataParallel(torch.nn.Linear(4, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
ckpt = Checkpointer(model=model, optimizer=optimizer, every=4, snapshot_every=1)
for step in range(ckpt.restore(), 16):
    optimizer.zero_grad()
    model(torch.full((1, 4), float(step))).square().sum().backward()
    optimizer.step()
    if step == 9 and dist.get_rank() == 1 and not os.path.exists("drifted"):
        open("drifted", "w").close()
        model.module.weight.detach().view(torch.int32)[1, 1] ^= 1
    ckpt.step(step + 1)
ckpt.close()
"""


def test_ranks_that_drift_apart_go_back_to_where_they_were_one(run: Run) -> None:
    """One bit of one rank's weights: found before the next save, nothing that was kept since is used, and the run ends
    with the weights of one in which it never happened."""
    run.script(DRIFTS)
    assert run.launch("--nproc", "2", "script.py") == 0

    assert [cause for cause, _ in run.verdicts()] == ["replicas_differ", "finished"]
    assert run.events("resumed")[1]["step"] in (8, 9)
    # Both ranks have the same batches, so one alone trains as two do.
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(16):
        optimizer.zero_grad()
        model(torch.full((1, 4), float(step))).square().sum().backward()
        optimizer.step()
    assert same(load(run.dir.checkpoints / step_name(16), 0).shared["model"], dict(model.state_dict()))


def test_what_going_back_does_not_cure_is_given_up(run: Run) -> None:
    """NaN from the tenth step on, whatever the data: three rollbacks, then 104; each from an older state than the
    last."""
    run.script(SICK.replace("BAD", "step >= 9"))

    assert run.launch("script.py") == 104

    orders = [e["rollback"]["before"] for e in run.events("relaunch_scheduled")]
    assert len(orders) == 3
    assert orders == sorted(orders, reverse=True)
    assert "gone back 3 times" in run.events("run_ended")[0]["reason"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('host_om = "stop"', "host_oom"),
        ('nan = "rolback"', "rollback"),
        ('finished = "restart"', "cannot be overridden"),
        ('killed = "rollback"', "only nan and exception"),
    ],
)
def test_a_policy_that_is_none_launches_nothing(run: Run, line: str, said: str) -> None:
    """One line that names the nearest, 2, and no run."""
    (run.folder / "supervise.toml").write_text(f"[policy]\n{line}\n")

    for command in (("launch", "--run-dir", "run"), ("policy",)):
        done = run.cli(*command, check=2)
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
    assert not run.dir.path.exists()
