"""Calls of a Checkpointer in another order than usual: right, or refused with what to do."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.jobs import on_ranks
from tests.support.training import SAVE, TAKE, Here, Notes, Training, training
from trainer.checkpoint import Checkpointer, StateError
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.memory import memory
from trainer.checkpoint.memory.copier import Copier
from trainer.checkpoint.memory.tier import Tier
from trainer.errors import NotFinite
from trainer.rundir.layout import committed_steps

# The scaler skips the first step.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")


@pytest.fixture
def trained(tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Training]:
    """Training that has made five steps, each with a snapshot, with a core to spare for copies."""
    monkeypatch.setattr(memory, "spare_cores", lambda here: True)
    Here(tmp_path, monkeypatch)
    with training() as made:
        made.run(5)
        yield made


def _checkpointer(folder: Path, **options: Any) -> Checkpointer:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Checkpointer(model=model, optimizer=optimizer, directory=folder, **{"every": 2, **options})


def test_steps_do_not_go_back(tmp_path: Path) -> None:
    """A step that is on disk counts as saved: what a second pass would save under its number would be in no
    checkpoint. Neither may a program pass over what restore() returns."""
    ckpt = _checkpointer(tmp_path)
    for step in range(ckpt.restore(), 4):
        ckpt.step(step + 1)
    with pytest.raises(StateError, match="step 1 comes after step 4"):
        ckpt.step(1)
    ckpt.step(5)
    ckpt.close()
    again = _checkpointer(tmp_path)
    assert again.restore() == 5
    with pytest.raises(StateError, match="what restore"):
        again.step(1)
    again.close()
    assert committed_steps(tmp_path) == [2, 4, 5]


def test_no_step_after_the_end(trained: Training) -> None:
    """It is refused, and waits for nobody."""
    trained.ckpt.close()
    with pytest.raises(StateError, match="after close"):
        trained.ckpt.step(6, TAKE)
    trained.ckpt.close()


def test_a_restore_while_a_snapshot_is_copied(trained: Training, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest finished step is the one that comes back, its flush is told, and one memory tier is there."""
    go, copy, close = threading.Event(), Copier.copy, Tier.close

    def late(self: Copier, *about: Any) -> None:
        assert go.wait(60)
        copy(self, *about)

    def closing(self: Tier) -> None:
        go.set()
        close(self)

    monkeypatch.setattr(Copier, "copy", late)
    monkeypatch.setattr(Tier, "close", closing)
    trained.run(6, SAVE)
    weights = {name: value.clone() for name, value in trained.model.state_dict().items()}
    try:
        assert trained.ckpt.restore() == 6
    finally:
        go.set()
    now = trained.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in weights.items())
    assert "flush_due" in notes.kinds()
    assert [thread.name for thread in threading.enumerate()].count("snapshot") == 1


def test_a_loss_that_one_rank_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stage of a pipeline alone has a loss. One that is not finite ends the step on all ranks, unsaved."""

    def body(ranks: Any) -> object:
        monkeypatch.setattr("trainer.checkpoint.checkpointer.this_group", Ranks)
        ckpt = _checkpointer(tmp_path)
        ckpt._ranks = ranks
        ckpt.restore()
        for step in range(1, 9):
            loss = math.nan if step == 4 else 1.0
            try:
                ckpt.step(step, loss=loss if ranks.rank == 1 else None)
            except NotFinite as error:
                return error.step
        return None

    assert on_ranks(2, body) == [4, 4]
    assert committed_steps(tmp_path) == [2]
