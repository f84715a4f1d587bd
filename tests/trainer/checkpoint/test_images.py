"""State whose tensors are other ones at each snapshot: what was planned for the earlier ones is gone, and they, too."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from tests.support.jobs import same
from trainer.checkpoint.disk.restore import recall
from trainer.checkpoint.memory.image import Image
from trainer.checkpoint.memory.memory import Memory
from trainer.checkpoint.memory.place import Place


class Rebinding(torch.optim.Optimizer):
    """It puts another tensor in its state at each step, as LBFGS and Adafactor do."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["last"] = parameter.grad.clone()
            parameter.data.sub_(parameter.grad)


@pytest.mark.parametrize("spare", [True, False], ids=["overlapped", "blocking"])
@pytest.mark.parametrize("grows", ["state", "extra"])
def test_what_was_planned_for_earlier_state_is_gone(tmp_path: Path, spare: bool, grows: str) -> None:
    """And what was copied aside for it, and its own tensors, which an optimizer has replaced since, or a program in its
    `extra`. Only those of the newest are alive, however long the buffers stay mapped."""
    torch.manual_seed(0)
    model = nn.Linear(300, 30)
    optimizer = Rebinding(model.parameters()) if grows == "state" else torch.optim.SGD(model.parameters(), 0.1)
    place = Place(tmp_path / "supervise-m", 0, 1, 0, None)
    memory = Memory(place, {"model": model, "optimizer": optimizer}, spare=spare)
    images, kept = list[weakref.ref[Image]](), list[list[StorageWeakRef]]()
    for step in range(20):
        optimizer.zero_grad()
        model(torch.randn(4, 300)).square().mean().backward()
        optimizer.step()
        extra = {"seen": torch.ones(step + 1)} if grows == "extra" else {}
        memory.take(step, extra)
        memory.wait()
        image = memory._planner.image
        assert image is not None
        images.append(weakref.ref(image))
        moved = extra["seen"] if extra else optimizer.state[model.weight]["last"]
        kept.append([StorageWeakRef(one.untyped_storage()) for one in (moved, *image._stage.values())])
        wanted = moved.clone()
        del extra, image, moved

    assert memory.problem is None
    assert [image() for image in images[:-1]] == [None] * 19
    assert all(storage.expired() for step in kept[:-2] for storage in step)
    shared = recall(place.folder, 19, None, 0).shared
    assert same(shared["extra"]["seen"] if grows == "extra" else shared["optimizer"]["state"][0]["last"], wanted)
    memory.close()
