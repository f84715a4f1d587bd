"""States of optimizers come back as they were, also those of which torch's own load_state_dict() makes something
else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.jobs import same
from tests.support.training import Notes
from trainer.checkpoint import Checkpointer, StateError

Optimizer = torch.optim.Optimizer
Make = Callable[[Iterable[nn.Parameter]], Optimizer]


class Exact(Optimizer):
    """Its states are of other types than the parameters: sums in fp32, a mask, a count, and a list of older ones."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for param in (param for group in self.param_groups for param in group["params"]):
            state = self.state[param]
            if not state:
                state["mean"] = torch.zeros_like(param, dtype=torch.float32)
                state["mask"] = torch.rand(param.shape) > 0.3
                state["count"] = torch.zeros((), dtype=torch.int64)
                state["older"] = [torch.zeros_like(param, dtype=torch.float64) for _ in range(2)]
            state["mean"].lerp_(param.grad.float(), 0.1)
            state["older"] = [state["older"][1], param.grad.double()]
            state["count"] += 1
            change = state["mean"] + state["older"][0].float() / (1 + state["count"])
            param[state["mask"]] -= 1e-2 * change[state["mask"]].to(param.dtype)


class Flat(Optimizer):
    """It keeps its momentum in two dimensions, as Muon does for convolutions."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for param in (param for group in self.param_groups for param in group["params"]):
            assert param.grad is not None
            flat = param.grad.reshape(param.shape[0], -1)
            momentum = self.state[param].setdefault("momentum_buffer", torch.zeros_like(flat))
            momentum.mul_(0.9).add_(flat)
            param.sub_(1e-2 * momentum.reshape(param.shape))


CASES: dict[str, tuple[Make, Callable[[nn.Module], nn.Module]]] = {
    "AdamW, fused, channels_last": (
        lambda params: torch.optim.AdamW(params, lr=1e-2, fused=True),
        lambda model: model.to(memory_format=torch.channels_last),  # type: ignore[call-overload, no-any-return]
    ),
    "SGD, fused, channels_last": (
        lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9, fused=True),
        lambda model: model.to(memory_format=torch.channels_last),  # type: ignore[call-overload, no-any-return]
    ),
    "other types, in bf16": (Exact, lambda model: model.bfloat16()),
    "flattened": (Flat, lambda model: model),
}


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on_to_the_bit(tmp_path: Path, case: str) -> None:
    make, shaped = CASES[case]

    def train(folder: str, start: int, stop: int) -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(3)
        model = shaped(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)))
        optimizer = make(model.parameters())
        ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path / folder, every=1)
        assert ckpt.restore() == start
        for step in range(start, stop):
            batch = torch.arange(2 * 3 * 8 * 8, dtype=next(model.parameters()).dtype).reshape(2, 3, 8, 8) / (100 + step)
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            ckpt.step(step + 1)
        ckpt.close()
        return model, optimizer

    model, optimizer = train("whole", 0, 6)
    train("cut", 0, 3)
    other, its = train("cut", 3, 6)

    assert same(dict(other.state_dict()), dict(model.state_dict()))
    assert same(its.state_dict()["state"], optimizer.state_dict()["state"])
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[one].items():
            if isinstance(value, torch.Tensor):
                assert (its.state[two][key].dtype, its.state[two][key].stride()) == (value.dtype, value.stride()), key


def test_an_optimizer_that_loads_in_its_own_way_is_left_alone(tmp_path: Path) -> None:
    """Its class, or a hook, knows better."""

    class Own(Exact):
        def load_state_dict(self, state_dict: Any) -> None:
            super().load_state_dict(state_dict)

    for kind in (Own, Exact):
        model = nn.Linear(2, 2).bfloat16()
        optimizer = kind(model.parameters())
        if kind is Exact:
            optimizer.register_load_state_dict_post_hook(lambda optimizer: None)
        folder = tmp_path / kind.__name__
        ckpt = Checkpointer(model=model, optimizer=optimizer, directory=folder, every=1)
        if not ckpt.restore():
            model(torch.ones(1, 2, dtype=torch.bfloat16)).sum().backward()
            optimizer.step()
            ckpt.step(1)
        ckpt.close()
        again = kind(model.parameters())
        if kind is Exact:
            again.register_load_state_dict_post_hook(lambda optimizer: None)
        ckpt = Checkpointer(model=model, optimizer=again, directory=folder)
        assert ckpt.restore() == 1
        ckpt._stop.close()
        assert {state["mean"].dtype for state in again.state.values()} == {torch.bfloat16}


def test_an_optimizer_around_another_one(tmp_path: Path) -> None:
    """It may be one of torch by its class alone, and have nothing that torch's own __init__ makes."""

    class Around(Optimizer):
        def __init__(self, inner: Optimizer) -> None:
            self.inner, self.param_groups, self.state, self.defaults = inner, inner.param_groups, inner.state, {}

        def state_dict(self) -> dict[str, Any]:
            return {"inner": self.inner.state_dict()}

        def load_state_dict(self, state: Any) -> None:
            self.inner.load_state_dict(state["inner"])

    for done in (0, 1):
        model = nn.Linear(2, 2)
        optimizer = Around(torch.optim.AdamW(model.parameters()))
        ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path, every=1)
        assert ckpt.restore() == done and len(optimizer.inner.state) == 2 * done
        model(torch.ones(1, 2)).sum().backward()
        optimizer.inner.step()
        ckpt.step(done + 1)
        ckpt.close()


@pytest.mark.parametrize("frozen", ["then", "now", "both"])
def test_layers_that_were_thawed_or_frozen_are_told_of(tmp_path: Path, notes: Notes, frozen: str) -> None:
    """A program that does so at some step does not do it again when it goes on from a later one."""
    for number, still in enumerate((frozen != "now", frozen != "then")):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model[0].requires_grad_(not still)
        optimizer = torch.optim.AdamW(model.parameters())
        ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path, every=1)
        assert ckpt.restore() == number
        ckpt.step(number + 1)
        ckpt.close()
    told = [text for text in notes.warnings() if "0.bias, 0.weight" in text]
    words = {"then": "was frozen there and trains here", "now": "trained there and is frozen here"}
    assert [words[frozen] in text for text in told] == ([True] if frozen != "both" else [])


def test_checkpointers_that_take_turns_in_a_folder_are_refused(tmp_path: Path) -> None:
    """The second one's step is there already, so what it has would be in no checkpoint. One that is made after another,
    as when a program goes on in the same process, is not; nor one with a folder of its own."""
    made = [Checkpointer(model=nn.Linear(2, 2), directory=tmp_path / "a", every=1) for _ in range(2)]
    apart = Checkpointer(model=nn.Linear(2, 2), directory=tmp_path / "b", every=1)
    for one in (*made, apart):
        one.restore()
    for one in (*made, apart):
        one.step(1)
    apart.step(2)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    after = Checkpointer(model=nn.Linear(2, 2), directory=tmp_path / "link", every=1)
    after.restore()
    after.step(2)
    after.step(3)
    for one in made:
        with pytest.raises(StateError, match=r"two Checkpointers take turns in .*/a: .*model=\{\.\.\.\}"):
            one.step(2)
    for one in (*made, apart, after):
        one._stop.close()
