"""Programs that call fit() or train() several times: none goes on from what another training has saved."""

from __future__ import annotations

import pytest

from tests.support.frameworks import IMPORTED, needs
from tests.support.programs.lightning_module import LIT
from tests.support.supervised import Run

MODEL = (
    LIT
    + """
import json, os
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
class Told(Callback):
    # The attempt, the training, the step from which it goes on, and the step at its end.
    def __init__(self, name):
        self.name = name
    def on_train_start(self, trainer, module):
        self.start = trainer.global_step
    def on_train_end(self, trainer, module):
        with open("trained", "a") as file:
            print(os.environ["SUPERVISE_ATTEMPT"], self.name, self.start, trainer.global_step, file=file)
def data():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(64, 4)), batch_size=1)
def trainer(name, folder, *callbacks):
    save = ModelCheckpoint(folder, every_n_train_steps=10, save_top_k=-1)
    return lightning.Trainer(
        max_steps=30, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        callbacks=[save, Told(name), *callbacks],
    )
"""
)
SEARCH = (
    MODEL
    + """
from lightning.pytorch.tuner import Tuner
class Sized(Lit):
    batch_size = 2
    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(64, 1, 4), batch_size=self.batch_size)
    def training_step(self, batch, index):
        return self.net(batch).pow(2).mean()
ours = []
if os.environ["OURS"]:
    from supervise.callbacks.lightning import SuperviseCallback
    ours = [SuperviseCallback(snapshot_every=1)]
one, model = trainer("real", "out", *ours), Sized()
Tuner(one).lr_find(model, num_training=20)
Tuner(one).scale_batch_size(model, max_trials=2)
model.batch_size = 1
one.fit(model)
"""
)


@pytest.mark.parametrize("ours", ["", "callback"])
def test_a_search_for_a_learning_rate(run: Run, ours: str) -> None:
    """A Tuner's fit() is no training: it does not take what the real one goes on from, its steps are none of the run,
    and it is not the first fit() of a SuperviseCallback."""
    needs("lightning")
    run.modules = IMPORTED["lightning"]
    assert run.launch("--nproc", "1", "--inject", "kill:rank=0@step=14", run.script(SEARCH), OURS=ours) == 0
    start = 13 if ours else 10
    assert [event["from_step"] for event in run.events("first_step")] == [0, start]
    assert (run.folder / "trained").read_text().split("\n") == [f"1 real {start} 30", ""]


KILLED = (
    MODEL
    + """
import pathlib
from lightning.pytorch.callbacks import LearningRateFinder
class Hyper(Lit):
    def __init__(self, lr: float = 0.01, data: object = None):
        super().__init__(lr)
        self.save_hyperparameters()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)
class Killed(Callback):
    def on_train_start(self, trainer, module):
        if trainer.global_step:
            assert {each["step"].item() for each in trainer.optimizers[0].state.values()} == {10.0}
    def on_train_batch_start(self, trainer, module, batch, index):
        if (os.environ["SUPERVISE_ATTEMPT"], trainer.global_step) == ("0", 14):
            os.kill(os.getpid(), 9)
finders, held = ([LearningRateFinder(num_training_steps=5)], None) if os.environ["FINDS"] else ([], pathlib.Path("x"))
trainer("real", "out", *finders, Killed()).fit(Hyper(data=held), data())
"""
)


@pytest.mark.parametrize("finds", ["", "rate"])
def test_what_lightning_would_not_go_on_from(run: Run, finds: str) -> None:
    """A search as fit() begins is left out in one that goes on: Lightning would have forgotten the checkpoint after it.
    And what the hyperparameters hold is read, whatever its class."""
    needs("lightning")
    run.modules = IMPORTED["lightning"]
    assert run.launch("--nproc", "1", run.script(KILLED), FINDS=finds) == 0
    assert (run.folder / "trained").read_text().split("\n") == ["1 real 10 30", ""]


FOLDS = (
    MODEL
    + """
def killed(fold):
    # In the first attempt, in the second fold.
    class Killed(Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            if (os.environ["SUPERVISE_ATTEMPT"], fold, trainer.global_step) == ("0", 1, int(os.environ["AT"])):
                os.kill(os.getpid(), 9)
    return Killed()
for fold in range(3):
    if os.environ["SKIPS"] and os.path.exists(f"done.{fold}"):
        continue
    ours = []
    if os.environ["OURS"]:
        from supervise.callbacks.lightning import SuperviseCallback
        ours = [SuperviseCallback(snapshot_every=1)]
    trainer(fold, os.environ["FOLDER"].replace("N", str(fold)) or None, killed(fold), *ours).fit(Lit(), data())
    open(f"done.{fold}", "w").close()
"""
)
AFTER = {14: ["1 1 10 30", "1 2 0 30"], 5: ["1 1 0 30", "1 2 0 30"]}
"""What the second attempt trains, by the step at which the first one was killed in its second fold: the first fold is
over, since it goes on from its own end."""


@pytest.mark.parametrize(
    ("folder", "skips", "at", "ours"),
    [
        pytest.param("foldN", "", 14, "", id="a folder for each"),
        pytest.param("foldN", "", 5, "", id="a folder for each, no save", marks=pytest.mark.long),
        pytest.param("foldN", "yes", 14, "", id="the done ones are left out", marks=pytest.mark.long),
        pytest.param("foldN", "yes", 5, "", id="the done ones are left out, no save"),
        pytest.param("out", "", 14, "", id="one folder", marks=pytest.mark.long),
        pytest.param("out", "", 5, "", id="one folder, no save"),
        pytest.param("", "", 14, "", id="a folder of the logger"),
        pytest.param("foldN", "", 14, "yes", id="a callback"),
        pytest.param("foldN", "yes", 14, "yes", id="a callback, the done ones are left out"),
    ],
)
def test_folds(run: Run, folder: str, skips: str, at: int, ours: str) -> None:
    """A fold goes on from its own newest checkpoint, never from another fold's, nor from the snapshot of the first one.
    A callback of ours changes nothing of that."""
    needs("lightning")
    run.modules = IMPORTED["lightning"]
    assert run.launch("--nproc", "1", run.script(FOLDS), FOLDER=folder, SKIPS=skips, AT=str(at), OURS=ours) == 0
    trained = (run.folder / "trained").read_text().splitlines()
    assert trained == ["0 0 0 30", *AFTER[at]]
    assert "begins anew" not in run.warnings()


STAGES = """
import os, torch, transformers
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 4)
    def forward(self, x):
        return {"loss": self.net(x).pow(2).mean()}
class Told(transformers.TrainerCallback):
    def __init__(self, stage):
        self.stage = stage
    def on_train_begin(self, args, state, control, **_):
        self.start = state.global_step
    def on_step_begin(self, args, state, control, **_):
        if (os.environ["SUPERVISE_ATTEMPT"], self.stage, state.global_step) == ("0", 1, 14):
            os.kill(os.getpid(), 9)
    def on_train_end(self, args, state, control, **_):
        with open("trained", "a") as file:
            print(os.environ["SUPERVISE_ATTEMPT"], self.stage, self.start, state.global_step, file=file)
ours = []
if os.environ["OURS"]:
    from supervise.callbacks.huggingface import SuperviseCallback
    ours = [SuperviseCallback(snapshot_every=1)]
for stage in range(2):
    if os.environ["OURS"] and os.path.exists(f"done.{stage}"):
        continue
    arguments = transformers.TrainingArguments(
        "out" + os.environ["OURS"].replace("N", str(stage)), max_steps=30, save_steps=10, use_cpu=True,
        per_device_train_batch_size=2, report_to="none", disable_tqdm=True,
    )
    data = [{"x": torch.randn(4)} for _ in range(80)]
    transformers.Trainer(Net(), arguments, train_dataset=data, callbacks=[Told(stage), *ours]).train()
    open(f"done.{stage}", "w").close()
"""


def test_trainers_with_one_folder(run: Run) -> None:
    """Hugging Face: the second one has written over the first one's checkpoint-10, and goes on from it; the first one
    has its checkpoint-30."""
    needs("transformers")
    run.modules = IMPORTED["transformers"]
    assert run.launch("--nproc", "1", run.script(STAGES), OURS="") == 0, run.warnings()
    trained = (run.folder / "trained").read_text().splitlines()
    assert trained[0] == "0 0 0 30" and trained[-1] == "1 1 10 30"
    assert not [line for line in trained[1:-1] if not line.startswith("1 0 30 ")]


def test_a_trainer_that_is_left_out(run: Run) -> None:
    """Then the second one, which is the first in that process, does not get the snapshot of the first one."""
    needs("transformers")
    run.modules = IMPORTED["transformers"]
    assert run.launch("--nproc", "1", run.script(STAGES), OURS="N") == 0, run.warnings()
    assert (run.folder / "trained").read_text().splitlines() == ["0 0 0 30", "1 1 10 30"]
