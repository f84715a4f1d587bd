"""A state that no step() has told of is saved under no step's number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.jobs import same
from trainer.checkpoint import Checkpointer, CheckpointError
from trainer.errors import NotFinite
from trainer.rundir.layout import committed_steps

STEPS = 10


class Job:
    """A loop that ends with close(), whatever happens, as a program with `finally` does."""

    def __init__(self, folder: Path, with_optimizer: bool = True) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(4, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        given = {"optimizer": self.optimizer} if with_optimizer else {}
        self.ckpt = Checkpointer(model=self.model, directory=folder, every=5, **given)

    def update(self, step: int, scale: float = 1.0) -> torch.Tensor:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        loss = (self.model(x).sum(1) - 1).square().mean() * scale
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def run(self, dies_at: int = -1, nan_at: int = -1) -> dict[str, Any]:
        try:
            for step in range(self.ckpt.restore(), STEPS):
                loss = self.update(step, float("nan") if step == nan_at else 1.0)
                if step == dies_at:
                    raise ValueError("the log is full")
                self.ckpt.step(step + 1, loss=loss)
        finally:
            self.ckpt.close()
        return dict(self.model.state_dict())


def test_a_death_between_the_optimizer_and_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The batch is not trained twice: the run goes on from the last saved step, and ends with the same bits."""
    whole = Job(tmp_path / "whole").run()
    with pytest.raises(ValueError, match="the log is full"):
        Job(tmp_path / "cut").run(dies_at=7)

    assert committed_steps(tmp_path / "cut") == [5]
    assert capsys.readouterr().err.splitlines() == [
        "the step after step 7 has failed and is not saved; the newest checkpoint is that of step 5"
    ]
    assert same(Job(tmp_path / "cut").run(), whole)


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_a_loss_that_is_not_finite(tmp_path: Path, with_optimizer: bool) -> None:
    """close() after NotFinite leaves the last good checkpoint the newest, also if no optimizer was given."""
    with pytest.raises(NotFinite):
        Job(tmp_path, with_optimizer).run(nan_at=7)

    assert committed_steps(tmp_path) == [5]
    again = Job(tmp_path, with_optimizer)
    assert again.ckpt.restore() == 5
    assert again.model.weight.isfinite().all()
    again.ckpt.close()


def test_save_after_a_step_that_failed_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path)
    loss = job.update(job.ckpt.restore(), float("nan"))
    with pytest.raises(NotFinite):
        job.ckpt.step(1, loss=loss)
    with pytest.raises(CheckpointError, match="the step after step 0 has failed"):
        job.ckpt.save()
    job.ckpt.close()
    assert committed_steps(tmp_path) == []


def test_updates_after_the_last_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A loop that tells of every third update has its last ones in the checkpoint all the same, and a warning."""
    job = Job(tmp_path)
    for step in range(job.ckpt.restore(), 8):
        job.update(step)
        if step % 3 == 2:
            job.ckpt.step(step)
    job.ckpt.close()

    assert committed_steps(tmp_path) == [5]
    again = Job(tmp_path)
    assert again.ckpt.restore() == 5
    again.ckpt.close()
    assert "call step() after the last update" not in capsys.readouterr().err  # step 5 was saved when it was due

    job = Job(tmp_path / "other")
    for step in range(job.ckpt.restore(), 5):
        job.update(step)
        if step % 3 == 2:
            job.ckpt.step(step)
    job.ckpt.close()
    assert committed_steps(tmp_path / "other") == [2]
    again = Job(tmp_path / "other")
    again.ckpt.restore()
    assert same(dict(again.model.state_dict()), dict(job.model.state_dict()))
    again.ckpt.close()
    assert "call step() after the last update" in capsys.readouterr().err


def test_several_updates_in_a_step(tmp_path: Path) -> None:
    """One step() for three updates is what the program calls a step; updates before restore() do not count."""
    job = Job(tmp_path)
    job.update(0)
    for step in range(job.ckpt.restore(), 2):
        for batch in range(3):
            job.update(3 * step + batch)
        job.ckpt.step(step + 1)
    # Another optimizer's steps, as those of an attack on the model, are not the training's.
    other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    other.step()
    job.ckpt.close()

    assert committed_steps(tmp_path) == [2]
    again = Job(tmp_path)
    assert again.ckpt.restore() == 2
    assert same(dict(again.model.state_dict()), dict(job.model.state_dict()))
    again.ckpt.close()
