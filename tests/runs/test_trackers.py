"""Trackers of a program that was killed and goes on, as their own readers show them: one curve, each step once."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.frameworks import needs
from tests.support.pages import Page
from tests.support.supervised import Run
from tests.support.wandb_server import QUIET, serving
from trainer.rank.trackers.wandb_log import rows
from trainer.rundir.files.codec import read
from trainer.rundir.records.boards import Numbers

BOARD = """
import os, torch
import tensorboardX
from torch.utils.tensorboard import SummaryWriter
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
default, other = SummaryWriter(log_dir=None), tensorboardX.SummaryWriter(comment="-other")
default.add_text("settings", "lr 0.01")
start = 0
if os.path.exists("last.pt"):
    saved = torch.load("last.pt")
    start = saved["step"]
    model.load_state_dict(saved["model"])
steps, epochs, tokens = SummaryWriter("steps"), SummaryWriter("epochs"), SummaryWriter("tokens")
own, late = SummaryWriter("own", purge_step=start + 5), SummaryWriter("late")
for step in range(start, 60):
    loss = model(torch.ones(1, 2)).pow(2).mean()
    loss.backward()
    optimizer.step()
    default.add_scalar("loss", loss.item(), step)
    steps.add_scalars("both", {"loss": loss.item(), "same": loss.item()}, step + 1)
    steps.add_scalar("loss", loss.item(), step + 1)
    tokens.add_scalar("loss", loss.item(), step)
    tokens.add_scalar("of tokens", loss.item(), 1000 + 512 * step)
    own.add_scalar("loss", loss.item(), step)
    late.add_scalar("loss", loss.item(), step)
    other.add_scalar("loss", loss.item(), step)
    if step == 30:
        for each in default, steps, epochs, tokens, own:
            each.flush()
    if step % 5 == 4:
        epochs.add_scalar("loss", loss.item(), step // 5)
    if step % 20 == 19:
        torch.save({"model": model.state_dict(), "step": step + 1}, "last.pt")
for each in default, other, steps, epochs, tokens, own, late:
    each.close()
"""


def shown(folder: Path, series: str = "loss") -> list[int]:
    """The steps of that series, as TensorBoard's own reader of a folder has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return [point.step for point in reader.Scalars(series)]


def twice(steps: list[int]) -> set[int]:
    return {step for step in steps if steps.count(step) > 1}


def test_tensorboard(run: Run) -> None:
    """Killed at 34 and gone on from 20: the default folder is the first attempt's, whether the writer or the state was
    there first; epochs are a measure, too; what cannot be told from another measure, and a purge_step, stay as they
    are. What was logged before a save is there, though TensorBoard itself writes only every two minutes."""
    needs("tensorboard")
    needs("tensorboardX")
    assert run.launch("--nproc", "1", "--inject", "kill:rank=0@step=34", run.script(BOARD)) == 0, run.warnings()
    assert [event["from_step"] for event in run.events("first_step")] == [0, 20]
    default, other = sorted((run.folder / "runs").iterdir())
    assert len([*default.iterdir()]) == 2
    assert shown(default) == shown(run.folder / "late") == [*range(60)]
    assert shown(other)[-40:] == [*range(20, 60)] and not twice(shown(other))
    assert shown(run.folder / "steps") == [*range(1, 61)]
    parts = [*(run.folder / "steps").glob("both_*")]
    assert [shown(each, "both") for each in parts] == 2 * [[*range(1, 61)]]
    assert shown(run.folder / "epochs") == [*range(12)]
    assert twice(shown(run.folder / "tokens")) >= {*range(20, 31)}
    assert shown(run.folder / "own") == [*range(25), *range(20, 60)]
    loss = next(curve for curve in page_of(run)["curves"] if curve["name"] == "loss")
    assert [x for x, y in zip(loss["x"], loss["y"], strict=True) if y is not None] == [*range(60)]
    assert now(run)["loss"] is not None


RESTARTS = ["restarts", "lost_steps", "goodput"]
WAITS = """
import json, os, time
def wait(step):
    # The supervisor has told what the restart has cost, and news since; a second later the trackers look again.
    if step != 50:
        return
    told = lambda: open("run/numbers.json").read()
    while not json.loads(told())["lost_steps"]:
        time.sleep(0.02)
    before = told()
    while told() == before:
        time.sleep(0.02)
    time.sleep(1.0)
"""
"""Before a program that is killed at 34: its step 50 waits until the trackers have news of the restart."""


def waiting(program: str) -> str:
    return WAITS + program.replace("optimizer.step()", "optimizer.step(); wait(step)")


def now(run: Run) -> Any:
    return json.loads(run.cli("status", str(run.dir.path), "--json").stdout)


def page_of(run: Run) -> Any:
    """What the page of the run draws."""
    run.cli("report", str(run.dir.path), "--html", "page.html")
    return Page((run.folder / "page.html").read_text()).data


def test_tensorboard_gets_the_runs_numbers(run: Run) -> None:
    """With --log-restarts they are in the first folder, each step once, beside the program's own."""
    needs("tensorboard")
    needs("tensorboardX")
    asked = "--log-restarts", "--nproc", "1", "--inject", "kill:rank=0@step=34"
    assert run.launch(*asked, run.script(waiting(BOARD))) == 0, run.warnings()
    folder = sorted((run.folder / "runs").iterdir())[0]
    for name in RESTARTS:
        steps = shown(folder, f"supervise/{name}")
        assert steps == sorted({*steps}) and len(steps) > 1 and {*steps} <= {*range(60)}
    assert shown(folder) == [*range(60)]
    (lost,) = (event["lost_steps"] for event in run.events("first_step")[1:])
    assert read(run.dir.numbers, Numbers).restarts == 1 and read(run.dir.numbers, Numbers).lost_steps == lost
    assert not [path for path in (run.folder / "steps").rglob("*.0") if b"supervise/" in path.read_bytes()]


def test_tensorboard_is_left_alone(run: Run) -> None:
    """With --adapter off nothing is remembered, as under torchrun, and points are there twice."""
    needs("tensorboard")
    needs("tensorboardX")
    alone = "--adapter", "off", "--nproc", "1", "--inject", "kill:rank=0@step=34"
    assert run.launch(*alone, run.script(BOARD)) == 0, run.warnings()
    assert not run.dir.trackers.exists()
    assert twice(shown(run.folder / "steps")) >= {*range(21, 32)}


MLFLOW = """
import os, torch, mlflow
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
mlflow.set_tracking_uri("file:mlruns")
mlflow.log_params({"lr": 0.01, "pid": os.getpid()})
start = torch.load("last.pt")["step"] if os.path.exists("last.pt") else 0
for step in range(start, 60):
    loss = model(torch.ones(1, 2)).pow(2).mean()
    loss.backward()
    optimizer.step()
    mlflow.log_metric("loss", loss.item(), step=step)
    if step % 5 == 4:
        mlflow.log_metrics({"by epoch": loss.item()}, step=step // 5)
    if step % 20 == 19:
        torch.save({"step": step + 1}, "last.pt")
        mlflow.log_metric("last save", step + 1)
with mlflow.start_run(nested=True):
    mlflow.log_metric("of another run", 1.0)
"""


def test_mlflow(run: Run) -> None:
    """One run for both attempts, with each step of each metric once; a number without steps may change; a parameter
    that is another one now does not end the program."""
    needs("mlflow")
    asked = "--nproc", "1", "--inject", "kill:rank=0@step=34", run.script(MLFLOW)
    assert run.launch(*asked, MLFLOW_ALLOW_FILE_STORE="true") == 0, run.warnings()
    assert [event["from_step"] for event in run.events("first_step")] == [0, 20]
    metrics = run.folder / "mlruns/0"
    runs = {path.parents[1]: path.parent for path in metrics.rglob("metrics/loss")}
    ((folder, kept),) = runs.items()
    assert len([*metrics.glob("*/meta.yaml")]) == 2

    def steps(name: str) -> list[int]:
        return [int(line.split()[2]) for line in (kept / name).read_text().splitlines()]

    assert steps("loss") == [*range(60)]
    assert steps("by epoch") == [*range(12)]
    assert [float(line.split()[1]) for line in (kept / "last save").read_text().splitlines()] == [20, 40, 60]
    assert {path.name for path in (folder / "params").iterdir()} == {"lr", "pid"}


WANDB = """
import os, torch, wandb
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
start = torch.load("last.pt")["step"] if os.path.exists("last.pt") else 0
given = os.environ["WANDB_MODE"] == "offline"
run = wandb.init(project="p", settings={"x_disable_stats": True, "x_disable_meta": True})
for step in range(start, 60):
    loss = model(torch.ones(1, 2)).pow(2).mean()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        torch.save({"step": step + 1}, "last.pt")
    if given:
        run.log({"train": {"at": step}}, step=10 * step)
    else:
        run.log({"train": {"at": step}, "loss": loss.item()})
        if step % 5 == 4:
            run.log({"of": step}, commit=False)
            run.log({"evaluated": step})
run.finish()
with wandb.init(project="p", settings={"x_disable_stats": True, "x_disable_meta": True}) as second:
    second.log({"test": 1.0})
"""


def test_wandb(run: Run) -> None:
    """Killed at 34 and gone on from 20: one run at the server, with each row once, though the server had not got all
    rows, and W&B's own steps are not the program's. A second run of the process is one of its own."""
    needs("wandb")
    with serving() as server:
        asked = "--nproc", "1", "--inject", "kill:rank=0@step=34", run.script(WANDB)
        assert run.launch(*asked, WANDB_MODE="online", **server.variables) == 0, run.warnings()
    assert [event["from_step"] for event in run.events("first_step")] == [0, 20]
    first = run.events("run_started")[0]["run"]
    assert set(server.runs) == {first, f"{first}-2"}
    rows = server.runs[first].rows()
    assert [row["_step"] for row in rows] == [*range(72)]
    assert [row["train"]["at"] for row in rows if "train" in row] == [*range(60)]
    assert [(row["of"], row["evaluated"]) for row in rows if "of" in row] == [(at, at) for at in range(4, 60, 5)]
    assert [row["test"] for row in server.runs[f"{first}-2"].rows()] == [1.0]
    assert now(run)["loss"] is not None


def test_wandb_gets_the_runs_numbers(run: Run) -> None:
    """With --log-restarts they are in rows of the program's own, and there is no row more."""
    needs("wandb")
    asked = "--log-restarts", "--nproc", "1", "--inject", "kill:rank=0@step=34", run.script(waiting(WANDB))
    with serving() as server:
        assert run.launch(*asked, WANDB_MODE="online", **server.variables) == 0, run.warnings()
    rows = server.runs[run.events("run_started")[0]["run"]].rows()
    assert [row["_step"] for row in rows] == [*range(72)]
    told = [row for row in rows if "supervise/restarts" in row]
    assert len(told) > 1 and told[-1]["supervise/restarts"] == 1
    assert told[-1]["supervise/lost_steps"] == run.events("first_step")[1]["lost_steps"]
    assert 0 < told[-1]["supervise/goodput"] < 1


def test_wandb_offline(run: Run) -> None:
    """Each attempt has a file of its own: together they have each step once, though the service writes only whole
    blocks and is killed with the attempt. `wandb sync` makes one curve of them."""
    needs("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    asked = "--nproc", "1", "--inject", "kill:rank=0@step=34", run.script(WANDB)
    assert run.launch(*asked, WANDB_MODE="offline", **QUIET) == 0, run.warnings()
    assert [event["from_step"] for event in run.events("first_step")] == [0, 20]
    first = run.events("run_started")[0]["run"]
    files = sorted((run.folder / "wandb").glob(f"offline-run-*-{first}/*.wandb"))
    assert len(files) == 2
    parts = [rows(str(file), Record) for file in files]
    assert sorted([*parts[0], *parts[1]]) == [*range(0, 600, 10)]
    with serving() as server:
        sync = [sys.executable, "-m", "wandb", "sync", *[str(file.parent) for file in files]]
        subprocess.run(sync, cwd=run.folder, env={**os.environ, **server.variables}, check=True, timeout=100)
    assert [(row["_step"], row["train"]["at"]) for row in server.runs[first].rows()] == [(10 * n, n) for n in range(60)]


LIGHTNING = """
import os, torch, lightning
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 4)
    def training_step(self, batch, index):
        loss = self.net(batch[0]).pow(2).mean()
        self.log("loss", loss)
        if self.global_step > 25:
            self.log("later", loss)
        if self.global_step == 30:
            self.loggers[0].save()
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)
keep = lightning.pytorch.callbacks.ModelCheckpoint(every_n_train_steps=20, save_top_k=-1)
trainer = lightning.Trainer(
    max_steps=60, accelerator="cpu", devices=1, logger=[CSVLogger("logs"), TensorBoardLogger("board")],
    enable_progress_bar=False, callbacks=[keep], log_every_n_steps=1,
)
data = torch.utils.data.TensorDataset(torch.randn(64, 4))
trainer.fit(Model(), torch.utils.data.DataLoader(data, batch_size=1))
"""


@pytest.mark.cold
def test_lightning(run: Run) -> None:
    """Both of its loggers go on in the folder of the first attempt, `version_0`; the CSVLogger by itself removes the
    file that it finds there."""
    needs("lightning")
    needs("tensorboard")
    assert run.launch("--nproc", "1", "--inject", "kill:rank=0@step=34", run.script(LIGHTNING)) == 0, run.warnings()
    assert [event["from_step"] for event in run.events("first_step")] == [0, 20]
    (table,) = (run.folder / "logs").rglob("metrics.csv")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [*range(60)]
    assert [int(row["step"]) for row in rows if row["later"]] == [*range(26, 60)]
    (board,) = {path.parent for path in (run.folder / "board").rglob("*tfevents*")}
    assert shown(board) == [*range(60)]
