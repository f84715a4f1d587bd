"""A program of a framework with the two lines of a callback: killed, stopped and brought back, it ends with the bits of
an undisturbed run.

Without a framework its tests are skipped; the extra `frameworks` has them all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.frameworks import IMPORTED, needs
from tests.support.supervised import Run

HEAD = """
import json, os, signal, sys, time, torch
attempt, rank = int(os.environ["SUPERVISE_ATTEMPT"]), int(os.environ["RANK"])
stops_at, bad = int(os.environ["STOPS_AT"]), int(os.environ["BAD"])
def after(step, callback):
    with open(f"steps.{rank}", "a") as file:
        print(attempt, step, file=file)
    if (step, rank, os.path.exists("asked")) == (stops_at, 1, False):
        open("asked", "w").close()
        os.kill(int(os.environ["SUPERVISE_SUPERVISOR_PID"]), signal.SIGTERM)
        while not callback._keeper._stop.is_set:
            time.sleep(0.01)
def full(value):
    if isinstance(value, dict):
        return {key: full(inner) for key, inner in value.items()}
    return value.full_tensor() if hasattr(value, "full_tensor") else value
def end(model, optimizer, **more):
    found = full(dict(model.state_dict())), full(optimizer.state_dict()["state"])
    if rank == 0:
        torch.save({"model": found[0], "optimizer": found[1], **more}, "end.pt")
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 96
    def __getitem__(self, index):
        noise = torch.rand(4) + index
        with open(f"seen.{rank}", "a") as file:
            print(attempt, index, file=file)
        return {"x": noise * float("nan") if index == bad and attempt == 0 else noise}
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    def forward(self, x):
        return {"loss": self.layers(x / 100).pow(2).mean()}
"""
TRAINER = """
import transformers
from supervise.callbacks.huggingface import SuperviseCallback
class After(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        after(state.global_step, ours)
ours = SuperviseCallback(snapshot_every=1)
arguments = transformers.TrainingArguments(
    "out", max_steps=40, per_device_train_batch_size=2, gradient_accumulation_steps=2, logging_steps=3, save_steps=15,
    use_cpu=True, report_to="none", disable_tqdm=True, learning_rate=1e-2, warmup_steps=10,
)
transformers.set_seed(0)
trainer = transformers.Trainer(Net(), arguments, train_dataset=Data(), callbacks=[After(), ours])
trainer.train()
logged = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
end(trainer.model, trainer.optimizer, logged=logged)
"""
LIGHTNING = """
import lightning
from supervise.callbacks.lightning import SuperviseCallback
class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net()
    def training_step(self, batch, index):
        return self.net(batch["x"])
    def validation_step(self, batch, index):
        with open(f"validated.{rank}", "a") as file:
            print(self.trainer.global_step, self.trainer.sanity_checking, file=file)
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.8)]
class After(lightning.pytorch.Callback):
    def on_train_start(self, trainer, *_):
        self.done = trainer.global_step
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step > self.done:
            self.done = trainer.global_step
            after(self.done, ours)
ours = SuperviseCallback(snapshot_every=1)
lightning.seed_everything(0, verbose=False)
save = lightning.pytorch.callbacks.ModelCheckpoint("out", filename="{step}", save_top_k=-1, every_n_train_steps=15)
trainer = lightning.Trainer(
    max_steps=40, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_progress_bar=False,
    accumulate_grad_batches=2, callbacks=[save, After(), ours],
)
model, data = Model(), Data()
load = torch.utils.data.DataLoader
trainer.fit(model, load(data, batch_size=2, shuffle=True), load(torch.utils.data.Subset(data, range(4)), batch_size=4))
trainer.validate(model, load(data, batch_size=4), verbose=False)
end(model, trainer.optimizers[0])
"""
ACCELERATE = """
import accelerate
from supervise.callbacks.accelerate import SuperviseLoop
accelerate.utils.set_seed(0)
accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
model = Net()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
data = torch.utils.data.DataLoader(Data(), batch_size=2, shuffle=True)
model, optimizer, data = accelerator.prepare(model, optimizer, data)
ours = SuperviseLoop(accelerator, data, snapshot_every=1)
for epoch in ours.epochs(4):
    for batch in ours:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch["x"])["loss"])
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            ours.state["losses"] = ours.state.get("losses", 0) + 1
            after(ours.step + 1, ours)
end(accelerator.unwrap_model(model), optimizer, **ours.state)
accelerator.end_training()
"""
ACCELERATE_FSDP2 = ACCELERATE.replace(
    "model = Net()",
    """
# accelerate refuses FSDP2 without a GPU; torch does not.
accelerator.state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(
    fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=10, cpu_ram_efficient_loading=False
)
accelerator.state.distributed_type = accelerate.DistributedType.FSDP
model = Net()
""",
)
TRAINER_FSDP2 = TRAINER.replace(
    "trainer.train()",
    """
# The Trainer refuses FSDP2 without a GPU; torch does not.
import accelerate
trainer.accelerator.state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(
    fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=10, cpu_ram_efficient_loading=False
)
trainer.accelerator.state.distributed_type = accelerate.DistributedType.FSDP
trainer.is_fsdp_enabled = True
trainer.train()
""",
).replace("save_steps=15,", "save_strategy='no',")
LIGHTNING_FSDP2 = (
    LIGHTNING.replace(
        "    def training_step",
        """    def configure_model(self):
        from torch.distributed.fsdp import fully_shard
        if hasattr(self.net, "unshard"):
            return
        for layer in (self.net.layers[0], self.net.layers[2], self.net):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
    def training_step""",
    )
    .replace('strategy="ddp"', "strategy=lightning.pytorch.strategies.ModelParallelStrategy()")
    .replace("[save, After(), ours]", "[After(), ours]")
    .replace("logger=False,", "logger=False, enable_checkpointing=False,")
)
FRAMEWORKS = [
    pytest.param("transformers", TRAINER, id="Hugging Face Trainer"),
    pytest.param("lightning", LIGHTNING, id="Lightning"),
    pytest.param("accelerate", ACCELERATE, id="accelerate"),
]
SHARDED = [
    pytest.param("transformers", TRAINER_FSDP2, id="Hugging Face Trainer, FSDP2"),
    pytest.param("lightning", LIGHTNING_FSDP2, id="Lightning, FSDP2"),
    pytest.param("accelerate", ACCELERATE_FSDP2, id="accelerate, FSDP2"),
]


@pytest.fixture
def again(tmp_path: Path) -> Run:
    """A second run, in a folder of its own."""
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    return Run(folder)


def launch(run: Run, text: str, *options: str, stops_at: int = -1, bad: int = -1) -> None:
    run.start("--nproc", "2", *options, run.script(HEAD + text), STOPS_AT=str(stops_at), BAD=str(bad))


def end(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run.folder / "end.pt", weights_only=True)
    return found


def same(one: Any, two: Any) -> bool:
    """Whether nested state is equal to the bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else bool(one == two)


def steps(run: Run, attempt: int) -> list[int]:
    """The steps that rank 0 has made in that attempt."""
    lines = [line.split() for line in (run.folder / "steps.0").read_text().splitlines()]
    return [int(step) for of, step in lines if int(of) == attempt]


@pytest.mark.parametrize(("needed", "text"), [*FRAMEWORKS, *SHARDED])
def test_kills_and_a_stop(run: Run, again: Run, monkeypatch: pytest.MonkeyPatch, needed: str, text: str) -> None:
    """Kills cost the step in flight, before the Trainer's first save and after it. A stop saves a step that all ranks
    agree on, and exit code 75 means that. The end has the bits of an undisturbed run's."""
    needs(needed)
    run.modules = again.modules = IMPORTED[needed]
    launch(again, text)
    assert again.wait() == 0, again.warnings()
    launch(run, text, "--inject", "kill:rank=1@step=7", "--inject", "kill:rank=0@step=29", stops_at=34)
    assert run.wait() == 75
    stopped = max(steps(run, 2))
    monkeypatch.setenv("STOPS_AT", "-1")
    monkeypatch.setenv("BAD", "-1")
    run.cli("resume", "run")

    assert [event["step"] for event in run.events("resumed")][1:] == [6, 28, stopped]
    told = [event["text"] for event in run.events("adapter") if event["step"] >= 0]
    assert all(text.startswith("goes on from its snapshot of step ") for text in told)
    assert stopped == 34
    assert steps(run, 3) == list(range(stopped + 1, max(steps(again, 0)) + 1))
    assert same(end(run), end(again))
    run.assert_nothing_left()


@pytest.mark.parametrize(("needed", "text"), FRAMEWORKS)
def test_a_loss_that_is_not_finite(run: Run, needed: str, text: str) -> None:
    """The run goes back to before it, passes the data over, and goes on; no rank has seen the bad sample again."""
    needs(needed)
    run.modules = IMPORTED[needed]
    launch(run, text, bad=77)
    assert run.wait() == 0

    assert [cause for cause, _ in run.verdicts()] == ["nan", "finished"]
    back = run.events("data_skipped")
    assert len(back) == 1
    assert steps(run, 1)[0] == back[0]["step"] + 1
    assert (run.folder / "end.pt").exists()


STOPS_EARLY = """
class Worse(transformers.Trainer):
    def evaluate(self, *args, **kwargs):
        metrics = {"eval_worse": float(self.state.global_step)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
class Stopping(transformers.EarlyStoppingCallback):
    pass
arguments = transformers.TrainingArguments(
    "out", max_steps=60, per_device_train_batch_size=2, use_cpu=True, report_to="none", disable_tqdm=True,
    eval_strategy="steps", eval_steps=5, save_steps=5, metric_for_best_model="eval_worse", greater_is_better=False,
)
given = [transformers.EarlyStoppingCallback(4), transformers.EarlyStoppingCallback(9), Stopping(7)]
transformers.set_seed(0)
trainer = Worse(Net(), arguments, train_dataset=Data(), eval_dataset=Data(), callbacks=[*given, After(), ours])
trainer.train()
mine = [each for each in trainer.callback_handler.callbacks if isinstance(each, transformers.EarlyStoppingCallback)]
assert [id(each) for each in mine] == [id(each) for each in given]
counts = [[each.early_stopping_patience, each.early_stopping_patience_counter] for each in given]
end(trainer.model, trainer.optimizer, counts=counts, done=trainer.state.global_step)
"""


def test_callbacks_of_the_trainer_go_on(run: Run) -> None:
    """Each evaluation is worse than the first: one that waits for four of them stops at 25 also after a kill in
    between, though the program does not ask the Trainer to restore its callbacks. They stay the program's objects, and
    each of one class has its own count."""
    needs("transformers")
    run.modules = IMPORTED["transformers"]
    head, _, _ = TRAINER.partition("arguments = ")
    launch(run, head + STOPS_EARLY, "--inject", "kill:rank=0@step=17")
    assert run.wait() == 0, run.warnings()
    assert [event["step"] for event in run.events("resumed")] == [0, 16]
    assert end(run)["done"] == 25
    assert end(run)["counts"] == [[4, 4], [9, 4], [7, 4]]
