"""What a program trains with and has not given is told, once; what it has given, or keeps in `extra`, is not."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.optim.swa_utils import AveragedModel

from tests.support.training import Notes
from trainer.checkpoint import Checkpointer


class Net(nn.Module):
    """Nobody else's class: models of other tests may be alive."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.register_buffer("cache", torch.zeros(3), persistent=False)
        self.moves = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache = torch.ones(3)  # made anew as it was: no loss
        if self.moves:
            self.mean.lerp_(x.mean(0), 0.5)
        out: torch.Tensor = self.layer(x - self.mean)
        return out


Given = dict[str, Any]
After = Callable[[], object]
Made = Callable[[Net, torch.optim.Optimizer], tuple[Given, After]]


def _nothing(net: Net, optimizer: torch.optim.Optimizer) -> tuple[Given, After]:
    return {}, lambda: None


def _scheduler(net: Net, optimizer: torch.optim.Optimizer, given: bool = False) -> tuple[Given, After]:
    one = lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer, 0.1, 3), lr_scheduler.ExponentialLR(optimizer, 0.9)], [3]
    )
    return {"scheduler": one} if given else {}, one.step


def _in_extra(net: Net, optimizer: torch.optim.Optimizer) -> tuple[Given, After]:
    one = lr_scheduler.ExponentialLR(optimizer, 0.9)
    return {"extra": lambda: {"schedule": one.state_dict()}}, one.step


def _average(net: Net, optimizer: torch.optim.Optimizer, given: bool = False) -> tuple[Given, After]:
    average = AveragedModel(net)
    return {"ema": average} if given else {}, lambda: average.update_parameters(net)


def _teacher(net: Net, optimizer: torch.optim.Optimizer) -> tuple[Given, After]:
    teacher = copy.deepcopy(net)
    return {}, lambda: teacher(torch.ones(2, 4))


def _scaler(net: Net, optimizer: torch.optim.Optimizer, given: bool = False) -> tuple[Given, After]:
    scaler = torch.amp.GradScaler("cpu")

    def scale() -> None:
        scaler.scale(net(torch.ones(2, 4)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    return {"scaler": scaler} if given else {}, scale


def _another(net: Net, optimizer: torch.optim.Optimizer) -> tuple[Given, After]:
    other = torch.optim.Adam(net.parameters(), lr=0.1)
    return {}, other.step


def _alone(net: Net, optimizer: torch.optim.Optimizer, given: bool = False) -> tuple[Given, After]:
    scale = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [scale]})
    scale.grad = torch.ones(2)
    return {"extra": lambda: {"scale": scale.detach()}} if given else {}, lambda: None


def _of_a_batch(net: Net, optimizer: torch.optim.Optimizer) -> tuple[Given, After]:
    """As for an attack on the model: its optimizer lives for a batch."""

    def attack() -> None:
        noise = nn.Parameter(torch.ones(2))
        noise.grad = torch.ones(2)
        torch.optim.Adam([noise]).step()

    return {}, attack


def _buffer(net: Net, optimizer: torch.optim.Optimizer) -> tuple[Given, After]:
    net.moves = True
    return {}, lambda: None


CASES: dict[str, tuple[Made, str | None]] = {
    "nothing": (_nothing, None),
    "scheduler": (_scheduler, "the learning rate's SequentialLR is in no checkpoint"),
    "scheduler, given": (lambda net, opt: _scheduler(net, opt, True), None),
    "scheduler, in extra": (_in_extra, None),
    "average": (_average, "give an average as ema="),
    "average, given": (lambda net, opt: _average(net, opt, True), None),
    "a model that does not change": (_teacher, None),
    "scaler": (_scaler, "give scaler="),
    "scaler, given": (lambda net, opt: _scaler(net, opt, True), None),
    "optimizer": (_another, r"steps (Adam) whose states are in no checkpoint"),
    "parameter": (_alone, "SGD steps parameters (of shape [2]) that are in no checkpoint"),
    "parameter, in extra": (lambda net, opt: _alone(net, opt, True), None),
    "an optimizer of a batch": (_of_a_batch, None),
    "buffer": (_buffer, "the buffer mean of the model changes in training"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_out(name: str, tmp_path: Path, notes: Notes) -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    made, says = CASES[name]
    given, after = made(net, optimizer)
    ckpt = Checkpointer(model=net, optimizer=optimizer, directory=tmp_path, every=None, **given)
    for step in range(ckpt.restore(), 8):
        net(torch.full((2, 4), float(step))).square().mean().backward()
        optimizer.step()
        after()
        ckpt.step(step + 1)
    ckpt.close()
    sentences = [fields["text"] for kind, fields in notes.kept if kind == "warning"]
    assert len(sentences) == (says is not None), sentences
    assert says is None or says in sentences[0]


def test_what_cannot_be_looked_at_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Odd(lr_scheduler.ExponentialLR):
        def state_dict(self) -> dict[str, Any]:
            raise RuntimeError("not now")

    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    odd = Odd(optimizer, 0.9)
    ckpt = Checkpointer(model=net, optimizer=optimizer, directory=tmp_path, every=None)
    ckpt.restore()
    optimizer.step()
    ckpt.step(1)
    assert odd and "could not be looked at: RuntimeError('not now')" in capfd.readouterr().err


def test_a_hook_of_ddp_with_a_state(tmp_path: Path, notes: Notes) -> None:
    """Of torch's PowerSGD: what it has left out of a step is not saved."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net = nn.parallel.DistributedDataParallel(Net())
        net.register_comm_hook(PowerSGDState(None, start_powerSGD_iter=2), powerSGD_hook)
        optimizer = torch.optim.SGD(net.parameters())
        ckpt = Checkpointer(model=net, optimizer=optimizer, directory=tmp_path, every=None)
        ckpt.restore()
        optimizer.step()
        ckpt.step(1)
    finally:
        dist.destroy_process_group()
    assert any("hook powerSGD_hook has a state (PowerSGDState)" in str(fields) for _, fields in notes.kept)


@pytest.mark.parametrize("given", ["none", "zeros", "zeros, all used", "zeros, saved"])
def test_gradients_that_are_set_to_zero(tmp_path: Path, notes: Notes, given: str) -> None:
    """An optimizer steps them, also those of a layer that the pass did not use; after a restart it would not."""
    layers = nn.ModuleList([Net(), Net()])
    optimizer = torch.optim.AdamW(layers.parameters())
    ckpt = Checkpointer(
        model=layers, optimizer=optimizer, directory=tmp_path, every=None, grads=given == "zeros, saved"
    )
    ckpt.restore()
    for step in range(8):
        optimizer.zero_grad(set_to_none=given == "none")
        used = layers if given == "zeros, all used" else [layers[step % 2]]
        sum(layer(torch.ones(2, 4)).square().mean() for layer in used).backward()
        optimizer.step()
        ckpt.step(step + 1)
    ckpt._stop.close()
    told = [text for text in notes.warnings() if "set to zero, not to None" in text]
    assert len(told) == (given == "zeros")


def test_a_checkpointer_is_collected_within_a_step(tmp_path: Path, notes: Notes) -> None:
    """Torch goes over its hooks then. One that went away meanwhile would be an error in the program's training."""
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    collecting = register_optimizer_step_post_hook(lambda *_: gc.collect())  # type: ignore[arg-type, return-value]
    ckpt = Checkpointer(model=net, optimizer=optimizer, directory=tmp_path)
    ckpt._stop.close()
    gone = weakref.ref(ckpt)
    held: list[Any] = [ckpt]
    held.append(held)  # only the collector finds it
    del ckpt, held
    gc.disable()
    try:
        optimizer.step()
    finally:
        gc.enable()
        collecting.remove()
    assert gone() is None
