"""Kinds of state that programs have: how each is made, trained for a step, and given to a Checkpointer."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler

from trainer.checkpoint import PerRank


@dataclass(slots=True)
class Case:
    """`given` is for the Checkpointer, `step` trains, `state` is what must be the same at the end."""

    given: dict[str, Any]
    step: Callable[[int], object]
    state: Callable[[], Any]


Made = Callable[[int, int], Case]
CASES: dict[str, Made] = {}
"""By name: (rank, number of ranks) -> the case."""
REFUSED: dict[str, str] = {
    "slices, undeclared": "shard_spec=",
    "stages of equal names": "model=PerRank(model)",
    "a rank's value in extra": "PerRank(value)",
}
"""Those that are refused, and what the refusal says."""


def _net(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.ReLU(), nn.Linear(16, 8))


def _batch(step: int, rank: int, *more: int) -> torch.Tensor:
    return torch.randn(12, 8, generator=torch.Generator().manual_seed(1000 * step + 10 * rank + sum(more)))


def _loss(model: nn.Module, step: int, rank: int) -> torch.Tensor:
    out: torch.Tensor = model(_batch(step, rank))
    return (out - torch.rand(out.shape)).square().mean()  # draws: the generators are a part of the state


def _case(
    rank: int,
    world: int,
    net: nn.Module | None = None,
    optimizer: Callable[[Any], Any] = lambda params: torch.optim.AdamW(params, lr=1e-2),
    scheduler: Callable[[Any], Any] | None = None,
    wrap: Callable[[nn.Module], nn.Module] = DistributedDataParallel,
    ddp: dict[str, Any] | None = None,
    draws: bool = True,
    **given: Any,
) -> Case:
    """The usual loop: forward, backward, step. `draws`: each rank's generator makes a part of its loss."""
    net = _net() if net is None else net
    model = wrap(net, **(ddp or {})) if world > 1 or wrap is not DistributedDataParallel else net
    opt = optimizer([p for p in model.parameters() if p.requires_grad])
    parts: dict[str, Any] = {"model": model, "optimizer": opt}
    if scheduler is not None:
        parts["scheduler"] = scheduler(opt)

    def step(number: int) -> None:
        def closure() -> torch.Tensor:
            opt.zero_grad()
            # Without a draw: some optimizers call it several times.
            loss: torch.Tensor = model(_batch(number, rank)).square().mean()
            loss.backward()
            return loss

        if isinstance(opt, torch.optim.LBFGS):
            opt.step(closure)
        else:
            opt.zero_grad()
            (_loss(model, number, rank) if draws else model(_batch(number, rank)).square().mean()).backward()
            opt.step()
            if isinstance(parts.get("scheduler"), lr_scheduler.ReduceLROnPlateau):
                parts["scheduler"].step(1.0)
            elif "scheduler" in parts:
                parts["scheduler"].step()

    def state() -> Any:
        return [net.state_dict(), opt.state_dict(), parts["scheduler"].state_dict() if "scheduler" in parts else None]

    return Case({**parts, **given}, step, state)


def _of(**options: Any) -> Made:
    """A case of one option; a function of none makes it anew."""
    return lambda rank, world: _case(
        rank, world, **{name: value() if name == "net" else value for name, value in options.items()}
    )


CASES["plain"] = _of()
CASES["BatchNorm"] = _of(net=lambda: _net(norm=True))
CASES["BatchNorm, not broadcast"] = _of(net=lambda: _net(norm=True), ddp={"broadcast_buffers": False})
for _name, _scheduler in {
    "OneCycle": lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, 20),
    "Plateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1),
    "Sequential": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)], [3]
    ),
    "Chained": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
}.items():
    CASES[_name] = _of(scheduler=_scheduler)
for _name, _kind in {
    "SGD with momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "LBFGS": lambda params: torch.optim.LBFGS(params, max_iter=3),
    "Adafactor": lambda params: torch.optim.Adafactor(params),
    "Rprop": lambda params: torch.optim.Rprop(params),
    "ASGD": lambda params: torch.optim.ASGD(params),
    "fused, a tensor as lr": lambda params: torch.optim.AdamW(params, lr=torch.tensor(1e-2), fused=True),
}.items():
    CASES[_name] = _of(optimizer=_kind)
CASES["compiled"] = _of(wrap=lambda net: DistributedDataParallel(torch.compile(net, backend="eager")))


def _case_of(name: str) -> Callable[[Made], Made]:
    def add(made: Made) -> Made:
        CASES[name] = made
        return made

    return add


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)
        self.down.weight = self.up.weight
        self.seen = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.seen += 1
        return self.down(torch.relu(self.up(x)))

    def get_extra_state(self) -> Any:
        return {"seen": self.seen}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]


@_case_of("a part of what DDP wraps")
def _adapter(rank: int, world: int) -> Case:
    net = _net()
    net[0].requires_grad_(False)
    made = _case(rank, world, net=net)

    class Trained:
        """It saves what is trained, and is no module."""

        def state_dict(self) -> dict[str, Any]:
            return {name: value for name, value in net.state_dict().items() if name.startswith("2")}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            net.load_state_dict(state, strict=False)

    return Case({**made.given, "model": Trained()}, made.step, made.state)


CASES["tied, with extra state"] = _of(net=_Tied)


def _partly_frozen() -> nn.Module:
    net = _net()
    net[0].requires_grad_(False)
    return net


CASES["partly frozen"] = _of(net=_partly_frozen)


@_case_of("a GAN and an average")
def _gan(rank: int, world: int) -> Case:
    models = {"one": _net(), "two": _net(norm=True)}
    wrapped = {name: DistributedDataParallel(net) if world > 1 else net for name, net in models.items()}
    opts = {name: torch.optim.Adam(net.parameters(), lr=1e-2) for name, net in wrapped.items()}
    average = copy.deepcopy(models["one"])

    def step(number: int) -> None:
        for name, net in wrapped.items():
            opts[name].zero_grad()
            _loss(net, number, rank).backward()
            opts[name].step()
        with torch.no_grad():
            for mean, param in zip(average.parameters(), models["one"].parameters(), strict=True):
                mean.lerp_(param, 0.1)

    def state() -> Any:
        return [[one.state_dict() for one in (*models.values(), average)], [o.state_dict() for o in opts.values()]]

    return Case({"model": wrapped, "optimizer": opts, "ema": average}, step, state)


@_case_of("a GradScaler")
def _scaled(rank: int, world: int) -> Case:
    made, scaler = _case(rank, world), torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    opt, model = made.given["optimizer"], made.given["model"]

    def step(number: int) -> None:
        opt.zero_grad()
        scaler.scale(_loss(model, number, rank)).backward()
        scaler.step(opt)
        scaler.update()

    return Case({**made.given, "scaler": scaler}, step, lambda: [made.state(), scaler.state_dict()])


@_case_of("gradients that wait")
def _waiting(rank: int, world: int) -> Case:
    made = _case(rank, world, grads=True)
    opt, model = made.given["optimizer"], made.given["model"]

    def step(number: int) -> None:
        _loss(model, number, rank).backward()
        if number % 3 == 2:
            opt.step()
            opt.zero_grad()

    return Case(made.given, step, lambda: [made.state(), [p.grad for p in model.parameters()]])


class _Reader:
    """Data of which each rank has its own place."""

    def __init__(self, rank: int) -> None:
        self.at = 100 * rank

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


@_case_of("data and values of each rank")
def _own(rank: int, world: int) -> Case:
    reader, seen = _Reader(rank), {"n": rank, "draw": torch.Generator().manual_seed(rank)}
    made = _case(rank, world, data=reader)

    def extra() -> dict[str, Any]:
        kinds = OrderedDict(a=deque([1.5], 3), b={Path("x"), b"y"}, c=(None, 1 << 70))
        return {"seen": PerRank({"n": seen["n"], "draw": seen["draw"].get_state()}), "kinds": kinds}

    def step(number: int) -> None:
        reader.at, seen["n"] = reader.at + 3, seen["n"] + 1
        torch.rand(2, generator=seen["draw"])
        made.step(reader.at)

    def restored(extra: dict[str, Any]) -> None:
        seen["n"] = extra["seen"]["n"]
        seen["draw"].set_state(extra["seen"]["draw"])

    return Case(
        {**made.given, "extra": extra, "restored": restored},
        step,
        lambda: [made.state(), reader.at, extra()["seen"].value],
    )


@_case_of("a rank's value in extra")
def _unmarked(rank: int, world: int) -> Case:
    return _case(rank, world, extra={"rank": rank})
