"""More kinds of state, as whole programs keep them; they are added to the cases of state_cases."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from tests.support.state_cases import REFUSED, Case, _batch, _case, _case_of, _loss, _net, _of
from tests.support.state_layers import CASES

_OTHERS = frozenset(CASES)


def _ddp(net: nn.Module, world: int) -> nn.Module:
    return DistributedDataParallel(net) if world > 1 else net


@_case_of("FSDP2 and its average")
def _sharded_average(rank: int, world: int) -> Case:
    average = AveragedModel(_net(), multi_avg_fn=get_ema_multi_avg_fn(0.9))
    fully_shard(average.module)

    made = _case(rank, world, wrap=fully_shard, draws=False, ema=average)

    def step(number: int) -> None:
        made.step(number)
        average.update_parameters(made.given["model"])

    return Case(made.given, step, lambda: [made.state(), average.state_dict()])


@_case_of("an average from the third step on, SWALR")
def _swa(rank: int, world: int) -> Case:
    net = _net()
    average = AveragedModel(net, use_buffers=True)
    made = _case(rank, world, net=net, scheduler=lambda opt: SWALR(opt, 0.05, anneal_epochs=4), ema=average)

    def step(number: int) -> None:
        made.step(number)
        if number >= 2:
            average.update_parameters(net)

    return Case(made.given, step, lambda: [made.state(), average.state_dict()])


@_case_of("micro-batches under no_sync")
def _unsynced(rank: int, world: int) -> Case:
    """Each rank's gradients are its own until the last micro-batch."""
    made = _case(rank, world, grads=True)
    opt, model = made.given["optimizer"], made.given["model"]

    def step(number: int) -> None:
        last = number % 3 == 2
        with nullcontext() if last or world == 1 else model.no_sync():
            _loss(model, number, rank).backward()
        if last:
            opt.step()
            opt.zero_grad()

    return Case(made.given, step, lambda: [made.state(), [p.grad for p in model.parameters()]])


@_case_of("two optimizers, one of them every third step")
def _two_periods(rank: int, world: int) -> Case:
    net = _net()
    model = _ddp(net, world)
    opts = {
        "often": torch.optim.AdamW(net[0].parameters(), lr=1e-2),
        "seldom": torch.optim.SGD(net[2].parameters(), lr=0.1, momentum=0.9),
    }

    def step(number: int) -> None:
        _loss(model, number, rank).backward()
        for opt in list(opts.values())[: 2 if number % 3 == 2 else 1]:
            opt.step()
            opt.zero_grad()

    return Case(
        {"model": model, "optimizer": opts, "grads": True},
        step,
        lambda: [net.state_dict(), [o.state_dict() for o in opts.values()], [p.grad for p in net.parameters()]],
    )


@_case_of("a layer thawed in the middle")
def _thawed(rank: int, world: int) -> Case:
    """The program thaws it in its third step, and a resumed one has not: what its optimizer had does not fit."""
    net = _net()
    net[0].requires_grad_(False)
    opt = torch.optim.AdamW(net[2].parameters(), lr=1e-2)

    def step(number: int) -> None:
        if number == 2:
            net[0].requires_grad_(True)
            opt.add_param_group({"params": list(net[0].parameters()), "lr": 1e-3})
        opt.zero_grad()
        net(_batch(number, 0)).square().mean().backward()
        opt.step()

    return Case({"model": net, "optimizer": opt}, step, lambda: [net.state_dict(), opt.state_dict()])


REFUSED["a layer thawed in the middle"] = "add a group before restore()"


def _normed() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 16)), nn.ReLU(), parametrizations.spectral_norm(nn.Linear(16, 8))
    )


CASES["weight_norm and spectral_norm"] = _of(net=_normed)


@_case_of("compiled over DDP")
def _compiled(rank: int, world: int) -> Case:
    def compiled(net: nn.Module) -> nn.Module:
        return torch.compile(_ddp(net, world), backend="eager")  # type: ignore[return-value]

    return _case(rank, world, wrap=compiled)  # type: ignore[arg-type]


class _Queue(nn.Module):
    """Its buffer has no length before its first batch, as a queue of keys or observed ranges have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("seen", torch.zeros(0, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        self.seen = torch.cat([self.seen, self.keys(out.detach())])[-9:]
        return out + self.seen.mean()

    def keys(self, out: torch.Tensor) -> torch.Tensor:
        return out.mean(0, keepdim=True)


CASES["a buffer that grows"] = _of(net=_Queue)


@_case_of("bf16 with masters in fp32")
def _masters(rank: int, world: int) -> Case:
    net = _net().to(torch.bfloat16)
    model = _ddp(net, world)
    masters = nn.ParameterList([p.detach().float() for p in net.parameters()])
    opt = torch.optim.AdamW(masters.parameters(), lr=1e-3)

    def step(number: int) -> None:
        model.zero_grad()
        model(_batch(number, rank).to(torch.bfloat16)).float().square().mean().backward()
        for master, param in zip(masters, net.parameters(), strict=True):
            master.grad = None if param.grad is None else param.grad.float()
        opt.step()
        with torch.no_grad():
            for master, param in zip(masters, net.parameters(), strict=True):
                param.copy_(master)

    def state() -> Any:
        return [net.state_dict(), masters.state_dict(), opt.state_dict()]

    return Case({"model": {"model": model, "masters": masters}, "optimizer": opt}, step, state)


@_case_of("a model in bf16, Adam in bf16")
def _half(rank: int, world: int) -> Case:
    net = _net().to(torch.bfloat16)
    made = _case(rank, world, net=net)
    model, opt = made.given["model"], made.given["optimizer"]

    def step(number: int) -> None:
        opt.zero_grad()
        model(_batch(number, rank).to(torch.bfloat16)).square().mean().backward()
        opt.step()

    return Case(made.given, step, made.state)


PROGRAMS = tuple(name for name in CASES if name not in _OTHERS)
"""The names of the cases that are made here."""
