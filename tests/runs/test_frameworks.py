"""Real programs of the frameworks that people train with, on tiny models and made data: the recovery from a kill is
warm.

`pip install -e '.[frameworks]'` (.ci/frameworks does it); without a framework its tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.frameworks import needs
from tests.support.supervised import Run, until

pytestmark = pytest.mark.cold
"""Frameworks import much, and look at what is there: the ranks find what a user's find."""

HEAD = """
import json, os, sys
attempt, rank = os.environ["SUPERVISE_ATTEMPT"], os.environ["RANK"]
threads = len(os.listdir("/proc/self/task"))
json.dump({"modules": sorted(sys.modules), "threads": threads}, open(f"began.{attempt}.{rank}.json", "w"))
"""
TRAINER = """
import datasets, pandas, torch, transformers
frame = pandas.DataFrame({"input_ids": [[i % 11 for i in range(start, start + 16)] for start in range(64)]})
frame["labels"] = frame["input_ids"]
data = datasets.Dataset.from_pandas(frame)
config = transformers.GPT2Config(vocab_size=11, n_positions=16, n_embd=16, n_layer=1, n_head=2)
class Slowly(transformers.TrainerCallback):
    def on_step_end(self, *_, **__):
        __import__("time").sleep(0.05)
arguments = transformers.TrainingArguments(
    "out", max_steps=100_000, per_device_train_batch_size=4, save_steps=50, save_total_limit=2, use_cpu=True,
    report_to="none", disable_tqdm=True, dataloader_num_workers=1,
)
transformers.Trainer(
    transformers.GPT2LMHeadModel(config), arguments, train_dataset=data, callbacks=[Slowly()],
).train()
"""
LIGHTNING = """
import lightning, torch
class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
    def training_step(self, batch, index):
        __import__("time").sleep(0.05)
        return self.layer(batch[0]).pow(2).mean()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 4)), batch_size=4)
lightning.Trainer(
    max_steps=100_000, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
    enable_checkpointing=False,
).fit(Model(), data)
"""
ACCELERATE = """
import accelerate, torch
accelerator = accelerate.Accelerator(cpu=True)
model = torch.nn.Linear(4, 4)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 4)), batch_size=4)
model, optimizer, data = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), data)
while True:
    for batch, in data:
        accelerator.backward(model(batch).pow(2).mean())
        optimizer.step()
        optimizer.zero_grad()
        __import__("time").sleep(0.05)
"""
COMPILED = """
import time, torch
torch.distributed.init_process_group("gloo")
width = 8 + max(0, int(attempt) - 1)
model = torch.compile(torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.GELU()))
model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters())
open(f"compiling.{attempt}.{rank}", "w").write(str(os.getpid()))
for step in range(20 if attempt == "3" else 100_000):
    model(torch.randn(4, width)).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(0.05)
"""
"""Its first two attempts have the same kernels, each of the next has other ones."""


def began(run: Run, attempt: int) -> dict[str, Any]:
    """What rank 0 of that attempt found when its script began."""
    found: dict[str, Any] = json.loads((run.folder / f"began.{attempt}.0.json").read_bytes())
    return found


def warm(run: Run, text: str, **env: str) -> dict[str, Any]:
    """The event of a group that waits, all that the script imports imported; the script trains on two ranks."""
    limits = ("--max-restarts", "9", "--no-progress-limit", "9")
    run.start("--nproc", "2", *limits, run.script(HEAD + text), XDG_CACHE_HOME=str(run.folder / "cache"), **env)
    return until(lambda: [e for e in run.events("standby_ready") if "serving_pid" in e], 150)[0]


def recovered(run: Run, tried: dict[str, str], name: str) -> None:
    """The newest kill was recovered from by the fork that stood by; how long that took is told."""
    assert {event["kind"] for event in run.events("attempt_started")} == {"fork"}
    assert not run.events("standby_lost")
    failed = [event["failed_mono"] for event in run.events("verdict") if event["cause"] == "killed"][-1]
    tried[f"kill to first step, {name}"] = f"{run.events('first_step')[-1]['at_mono'] - failed:.2f} s"


def stop(run: Run) -> None:
    run.cli("stop", "run", "--now")
    assert run.wait() == 103


@pytest.mark.parametrize(
    ("needed", "text"),
    [
        (("transformers", "accelerate", "datasets", "pandas"), TRAINER),
        (("lightning",), LIGHTNING),
        (("accelerate",), ACCELERATE),
    ],
    ids=["Hugging Face Trainer", "Lightning", "accelerate"],
)
def test_the_recovery_is_warm(run: Run, tried: dict[str, str], needed: tuple[str, ...], text: str) -> None:
    """After a kill the script goes on in the group that stood by, with its frameworks imported and one thread."""
    needs(*needed)
    standby = warm(run, text)
    run.cli("inject", "run", "kill:rank=1")
    run.until_event("first_step", 2)
    stop(run)

    recovered(run, tried, needed[0])
    assert run.events("attempt_started")[1]["launcher_pid"] == standby["launcher_pid"]
    assert not {*needed} & {*began(run, 0)["modules"]}
    assert {*needed} <= {*began(run, 1)["modules"]}
    assert began(run, 1)["threads"] == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: inductor cannot compile")
@pytest.mark.long
def test_compiled(run: Run, tried: dict[str, str]) -> None:
    """The kernels of the attempt before are used; a rank that is a fork compiles as a fresh one does, also the one
    after a rank that was killed while it compiled; and it ends."""
    cache = run.folder / "kernels"
    warm(run, COMPILED, TORCHINDUCTOR_CACHE_DIR=str(cache))
    run.cli("inject", "run", "kill:rank=0")
    run.until_event("first_step", 2)
    recovered(run, tried, "torch.compile")
    run.cli("inject", "run", "kill:rank=0")
    pid = until(lambda: _text(run.folder / "compiling.2.1"))
    known = {*cache.rglob("*.so")}
    os.kill(int(pid), signal.SIGKILL)
    assert run.wait() == 0

    recovered(run, tried, "torch.compile, other kernels")
    assert [cause for cause, _ in run.verdicts()] == ["killed", "killed", "killed", "finished"]
    assert "torch._inductor.compile_fx" in began(run, 1)["modules"]
    assert {*cache.rglob("*.so")} - known


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
