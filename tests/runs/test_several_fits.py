"""Programs that call fit() or train() several times: none goes on from what another training has saved."""

from __future__ import annotations

import pytest

from tests.support.frameworks import IMPORTED, needs
from tests.support.supervised import Run

MODEL = """
import json, os, torch, lightning
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
class Lit(lightning.LightningModule):
    def __init__(self, lr=0.01):
        super().__init__()
        self.lr, self.net = lr, torch.nn.Linear(4, 4)
    def training_step(self, batch, index):
        return self.net(batch[0]).pow(2).mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)
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
