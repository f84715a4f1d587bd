"""Programs of the frameworks that people train with, unchanged: killed before their first save, between two, and inside
one, they go on at once from what they had saved, with nothing typed, and end as the framework itself would.

The frameworks are those of the extra; without one its test is skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.frameworks import IMPORTED, needs
from tests.support.supervised import Run, environment
from tests.support.waiting import until

pytestmark = pytest.mark.cold
"""Frameworks import much, and look at what is there: the ranks find what a user's find."""

HEAD = """
import json, os, signal, sys
attempt, rank = os.environ.get("SUPERVISE_ATTEMPT", "by hand"), os.environ.get("RANK", "0")
threads = len(os.listdir("/proc/self/task"))
json.dump({"modules": sorted(sys.modules), "threads": threads}, open(f"began.{attempt}.{rank}.json", "w"))
import time, torch
if "WAITS" in os.environ and attempt == "0":
    # Its fifth step waits for what the test wants to see first.
    made = []
    def waits(*_):
        made.append(None)
        while len(made) == 4 and not os.path.exists("go"):
            time.sleep(0.02)
    from torch.optim.optimizer import register_optimizer_step_post_hook
    register_optimizer_step_post_hook(waits)
DYING = os.environ.get("SUPERVISE_ATTEMPT") == "2" and os.environ.get("RANK", "0") == "0"
if DYING:
    # The kill inside a save, in the third attempt: the file of these words is there, and holds nothing yet.
    real = torch.serialization._open_zipfile_writer
    def opened(file):
        writer = real(file)
        if all(word in str(file) for word in os.environ["TORN"].split()):
            os.kill(os.getpid(), signal.SIGKILL)
        return writer
    torch.serialization._open_zipfile_writer = opened
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return {"x": torch.randn(4, generator=torch.Generator().manual_seed(index))}
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1))
    def forward(self, x):
        return {"loss": self.layers(x).pow(2).mean()}
"""
TRAINER = """
import datasets, pandas, transformers
data = datasets.Dataset.from_pandas(pandas.DataFrame({"x": [Data()[i]["x"].tolist() for i in range(64)]}))
transformers.set_seed(0)
trainer = transformers.Trainer(Net(), transformers.TrainingArguments(
    "out", max_steps=40, per_device_train_batch_size=4, save_steps=10, use_cpu=True, report_to="none",
    disable_tqdm=True, dataloader_num_workers=1,
), train_dataset=data)
trainer.train()
if trainer.args.process_index == 0:
    torch.save(trainer.model.state_dict(), "end.pt")
"""
LIGHTNING = """
import lightning
import fsspec.implementations.local
if DYING:
    # It is written into a buffer, then to a file, and moved.
    commit = fsspec.implementations.local.LocalFileOpener.commit
    def moved(self):
        if os.environ["TORN"] in self.path:
            os.kill(os.getpid(), signal.SIGKILL)
        commit(self)
    fsspec.implementations.local.LocalFileOpener.commit = moved
class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 4)
    def training_step(self, batch, index):
        return self.net(batch["x"]).pow(2).mean()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)
lightning.seed_everything(0, verbose=False)
every = int(os.environ.get("EVERY", "8"))
keep = lightning.pytorch.callbacks.ModelCheckpoint("out", filename="{step}", save_top_k=-1, every_n_train_steps=every)
trainer = lightning.Trainer(
    max_steps=int(os.environ.get("STEPS", "40")), accelerator="cpu", devices=2, strategy="ddp", logger=False,
    enable_progress_bar=False, callbacks=[keep],
)
model = Model()
trainer.fit(model, torch.utils.data.DataLoader(Data(), batch_size=4), ckpt_path=os.environ.get("BY_HAND"))
if trainer.is_global_zero:
    torch.save(model.state_dict(), "end.pt")
"""
ACCELERATE = """
import accelerate, argparse
parser = argparse.ArgumentParser()
parser.add_argument("--resume_from_checkpoint", type=str, help="If the training should continue from a folder.")
parser.add_argument("--checkpointing_steps", type=int, default=10)
args = parser.parse_args()
accelerate.utils.set_seed(0)
accelerator = accelerate.Accelerator(cpu=True)
model = Net()
data = torch.utils.data.DataLoader(Data(), batch_size=4)
model, optimizer, data = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), data)
done = 0
if args.resume_from_checkpoint:
    accelerator.load_state(args.resume_from_checkpoint)
    done = int(os.path.basename(args.resume_from_checkpoint).removeprefix("step_"))
while done < 40:
    skip = done % len(data)
    for batch in accelerator.skip_first_batches(data, skip) if skip else data:
        # Its loaders draw from the generator that the dropout draws from, once a start.
        torch.manual_seed(done)
        accelerator.backward(model(batch["x"])["loss"])
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        if done % args.checkpointing_steps == 0:
            accelerator.save_state(f"out/step_{done}")
        if done == 40:
            break
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    torch.save(accelerator.unwrap_model(model).state_dict(), "end.pt")
accelerator.end_training()
"""
HYDRA = """
import hydra
@hydra.main(version_base=None, config_path=None)
def main(config):
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    folder = hydra.core.hydra_config.HydraConfig.get().runtime.output_dir
    path, start = os.path.join(folder, "last.pt"), 0
    if os.path.exists(path):
        saved = torch.load(path)
        start = saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for step in range(start, 40):
        torch.manual_seed(step)
        model(Data()[step]["x"])["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0 and torch.distributed.get_rank() == 0:
            saved = {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(saved, path)
        torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        torch.save(model.state_dict(), os.path.join(hydra.utils.get_original_cwd(), "end.pt"))
main()
"""
PROGRAMS = [
    pytest.param(
        ("transformers", "accelerate", "datasets", "pandas"),
        TRAINER,
        10,
        20,
        "checkpoint-30 optimizer",
        id="Hugging Face Trainer",
    ),
    pytest.param(("lightning",), LIGHTNING, 8, 16, "step=24", id="Lightning"),
    pytest.param(("accelerate",), ACCELERATE, 10, 20, "step_30 optimizer", id="accelerate"),
    pytest.param(("hydra",), HYDRA, 10, 10, "last.pt", id="hydra"),
]


def end(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "end.pt", weights_only=True)
    return found


def again(run: Run) -> Run:
    """A second run, in a folder of its own."""
    folder = run.folder / "undisturbed"
    folder.mkdir()
    return Run(folder)


def same(one: Path, two: Path) -> bool:
    a, b = end(one), end(two)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def began(run: Run, attempt: int) -> dict[str, Any]:
    """What rank 0 of that attempt found when its script began."""
    found: dict[str, Any] = json.loads((run.folder / f"began.{attempt}.0.json").read_bytes())
    return found


@pytest.mark.parametrize(("needed", "text", "every", "whole", "torn"), PROGRAMS)
def test_three_kills(
    run: Run, tried: dict[str, str], needed: tuple[str, ...], text: str, every: int, whole: int, torn: str
) -> None:
    """Killed before its first save it begins anew; between two, it goes on from the first of them; inside one, from the
    one before that, which the kill has left whole; and it ends with the bits of a run that nobody touched. Lightning's
    data begins anew at each resume, so that its bits are those of the test below.

    Each time it goes on in the group that stood by, with its frameworks imported and one thread."""
    needs(*needed)
    kills = "--inject", "kill:rank=1@step=5", "--inject", f"kill:rank=1@step={every + 5}"
    run.start("--nproc", "2", *kills, run.script(HEAD + text), TORN=torn, WAITS="")
    until(lambda: [e for e in run.events("standby_ready") if "serving_pid" in e], 150)
    run.until_standby()
    (run.folder / "go").touch()
    assert run.wait() == 0, run.warnings()

    first = run.events("first_step")
    assert [event["from_step"] for event in first] == [0, 0, every, whole]
    told = [event["path"] for event in run.events("adapter") if event["path"]]
    assert [Path(path).is_relative_to(run.folder) for path in told] == [True, True]
    started = run.events("attempt_started")
    assert {event["kind"] for event in started} == {"fork"} and not run.events("standby_lost")
    assert started[1]["launcher_pid"] in [event["launcher_pid"] for event in run.events("standby_ready")]
    assert not {*needed} & {*began(run, 0)["modules"]}
    for attempt in 1, 2, 3:
        assert {*needed} <= {*began(run, attempt)["modules"]} and began(run, attempt)["threads"] == 1
    tried[f"kill to first step, {needed[0]}"] = f"{first[1]['at_mono'] - run.events('verdict')[0]['failed_mono']:.2f} s"

    if needed != ("lightning",):
        undisturbed = again(run)
        undisturbed.modules = IMPORTED[needed[0]]
        assert undisturbed.launch("--nproc", "2", undisturbed.script(HEAD + text)) == 0
        assert same(run.folder, undisturbed.folder)


@pytest.mark.long
def test_lightning_inside_an_epoch(run: Run) -> None:
    """Where Lightning itself does not come back to the bit, because its data begins anew, it ends with the bits of one
    that was resumed by hand."""
    needs("lightning")
    script = run.script(HEAD + LIGHTNING)
    assert run.launch("--nproc", "2", "--inject", "kill:rank=0@step=13", script, EVERY="10") == 0
    by_hand = again(run)
    by_hand.script(HEAD + LIGHTNING)
    for more in ({"STEPS": "13"}, {"BY_HAND": "out/step=10.ckpt"}):
        command = sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script
        subprocess.run(command, cwd=by_hand.folder, env=environment(EVERY="10", **more), check=True, timeout=120)

    assert [event["from_step"] for event in run.events("first_step")] == [0, 10]
    assert same(run.folder, by_hand.folder)
