"""Rarer kinds of state; they are added to the cases of state_cases and state_programs."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset

from tests.support.state_cases import REFUSED, Case, _batch, _case, _case_of, _net, _of
from tests.support.state_layouts import LAYOUTS
from tests.support.state_programs import CASES, _Queue
from trainer.checkpoint import PerRank, Seeded

_OTHERS = frozenset(CASES) - LAYOUTS


class _Numbers(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((8,), float(index)) / 23 + 0.1 * torch.randn(8)


def _loader_case(workers: int) -> Callable[[int, int], Case]:
    """Epochs of three batches of a rank's own order: a run is killed in the middle of an epoch and at its end."""

    def made(rank: int, world: int) -> Case:
        from torchdata.stateful_dataloader import StatefulDataLoader

        draws = torch.Generator().manual_seed(50 + rank)
        loader: Any = StatefulDataLoader(
            Seeded(_Numbers()), batch_size=8, shuffle=True, num_workers=workers, generator=draws
        )
        made = _case(rank, world, data=loader)
        opt, model = made.given["optimizer"], made.given["model"]
        seen, batches = [0.0], [iter(())]

        def step(number: int) -> None:
            batch = next(batches[0], None)
            if batch is None:
                batches[0] = iter(loader)
                batch = next(batches[0])
            seen[0] = float(batch.double().sum())
            opt.zero_grad()
            model(batch).square().mean().backward()
            opt.step()

        def restored(extra: Any) -> None:
            batches[0] = iter(loader)

        return Case({**made.given, "extra": {"x": 1}, "restored": restored}, step, lambda: [made.state(), seen])

    return made


LOADERS = ("a loader with workers", "a loader without")
"""They need torchdata."""
for _name, _workers in zip(LOADERS, (2, 0), strict=True):
    CASES[_name] = _loader_case(_workers)


for _name, _kind in {
    "Muon": lambda params: torch.optim.Muon([p for p in params if p.dim() == 2], lr=1e-2),
    "NAdam": lambda params: torch.optim.NAdam(params),
    "RAdam": lambda params: torch.optim.RAdam(params, foreach=True),
    "Adadelta": lambda params: torch.optim.Adadelta(params),
    "amsgrad, one by one": lambda params: torch.optim.AdamW(params, amsgrad=True, foreach=False),
    "SGD, fused": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "Adagrad, fused": lambda params: torch.optim.Adagrad(params, fused=True),
}.items():
    CASES[_name] = _of(optimizer=_kind)
for _name, _scheduler in {
    "Cyclic": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, 2, cycle_momentum=False),
    "Lambda": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 0.9**step),
    "Restarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3, 2),
}.items():
    CASES[_name] = _of(scheduler=_scheduler)


class _OneForEach:
    """An optimizer of its own for each parameter, which steps within the backward pass."""

    def __init__(self, net: nn.Module) -> None:
        self.all = {name: torch.optim.AdamW([param], lr=1e-2) for name, param in net.named_parameters()}
        for name, param in net.named_parameters():
            param.register_post_accumulate_grad_hook(self._hook(self.all[name]))

    def _hook(self, opt: torch.optim.Optimizer) -> Callable[[torch.Tensor], None]:
        def stepped(param: torch.Tensor) -> None:
            opt.step()
            opt.zero_grad()

        return stepped


@_case_of("steps within the backward pass")
def _within(rank: int, world: int) -> Case:
    net = _net()
    each = _OneForEach(net)

    def step(number: int) -> None:
        net(_batch(number, 0)).square().mean().backward()

    opts = {name.replace(".", "_"): opt for name, opt in each.all.items()}
    return Case(
        {"model": net, "optimizer": opts}, step, lambda: [net.state_dict(), [o.state_dict() for o in opts.values()]]
    )


@_case_of("fp16 and a scale that falls")
def _fp16(rank: int, world: int) -> Case:
    """Some steps overflow and are left out."""
    made, scaler = _case(rank, world), torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)
    opt, model = made.given["optimizer"], made.given["model"]

    def step(number: int) -> None:
        opt.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model(_batch(number, rank)).float().square().mean()
        scaler.scale(loss * (1e30 if number in (1, 4) else 1e-3)).backward()
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(opt)
        scaler.update()

    return Case({**made.given, "scaler": scaler}, step, lambda: [made.state(), scaler.state_dict()])


CASES["an average of all batches"] = _of(
    net=lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, momentum=None), nn.Linear(16, 8))
)


@_case_of("sparse gradients")
def _sparse(rank: int, world: int) -> Case:
    torch.manual_seed(1)
    table = nn.Embedding(20, 8, sparse=True)
    model: Any = DistributedDataParallel(table) if world > 1 else table
    opt = torch.optim.SparseAdam(table.parameters(), lr=1e-2)

    def step(number: int) -> None:
        opt.zero_grad()
        rows = torch.randint(20, (6,), generator=torch.Generator().manual_seed(10 * number + rank))
        model(rows).square().mean().backward()
        opt.step()

    return Case({"model": model, "optimizer": opt}, step, lambda: [table.state_dict(), opt.state_dict()])


class _Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.wave = nn.Parameter(torch.randn(8, 8, dtype=torch.complex64) / 3)
        self.register_buffer("coarse", torch.randn(8).to(torch.float8_e4m3fn))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = (x.to(torch.complex64) @ self.wave).abs()
        self.coarse = out.detach().mean(0).to(torch.float8_e4m3fn)
        return out + self.coarse.float()


@_case_of("complex and float8")
def _waves(rank: int, world: int) -> Case:
    return _case(0, world, net=_Waves(), wrap=lambda net: net, draws=False)


@_case_of("generators of python and numpy")
def _draws(rank: int, world: int) -> Case:
    made = _case(rank, world)
    opt, model = made.given["optimizer"], made.given["model"]
    seen = [0.0]

    def collate(samples: list[Any]) -> torch.Tensor:
        return torch.stack(samples) * random.random() + np.random.rand() + torch.rand(())

    class Plain(_Numbers):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.full((8,), float(index)) / 23

    random.seed(rank)
    np.random.seed(rank)

    def step(number: int) -> None:
        batch = next(iter(DataLoader(Plain(), batch_size=8, collate_fn=collate)))
        seen[0] = float(batch.double().sum())
        opt.zero_grad()
        model(batch).square().mean().backward()
        opt.step()

    return Case(made.given, step, lambda: [made.state(), seen[0], random.random(), np.random.rand()])


class _Curriculum:
    def __init__(self) -> None:
        self.level = 0

    def state_dict(self) -> dict[str, int]:
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.level = state["level"]


@_case_of("an object in extra")
def _object(rank: int, world: int) -> Case:
    return _case(rank, world, extra={"curriculum": _Curriculum()})


@_case_of("a curriculum as a scheduler")
def _curriculum(rank: int, world: int) -> Case:
    curriculum = _Curriculum()
    made = _case(rank, world)

    def step(number: int) -> None:
        curriculum.level += 1 + number % 2
        made.step(number + 100 * curriculum.level)

    given = {**made.given, "scheduler": {"curriculum": curriculum}}
    return Case(given, step, lambda: [made.state(), curriculum.level])


@_case_of("batches of uneven number")
def _joined(rank: int, world: int) -> Case:
    """In each step of the loop, an epoch under Join: each rank has another number of batches."""
    made = _case(rank, world, optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    opt, model = made.given["optimizer"], made.given["model"]

    def step(number: int) -> None:
        with warnings.catch_warnings(), Join([model]):
            warnings.simplefilter("ignore")
            for batch in range(1 + (rank + number) % 2):
                opt.zero_grad()
                model(_batch(number, rank, 100 * batch)).square().mean().backward()
                opt.step()

    # A rank that has joined takes no steps: the averages of gradients are each rank's own.
    return Case({**made.given, "optimizer": PerRank(opt)}, step, made.state)


@_case_of("a part of an optimizer on each rank")
def _zero(rank: int, world: int) -> Case:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return _case(rank, world, optimizer=lambda params: ZeroRedundancyOptimizer(params, torch.optim.AdamW, lr=1e-2))


REFUSED["an object in extra"] = "extra/curriculum"
REFUSED["a part of an optimizer on each rank"] = "ZeroRedundancyOptimizer"


def _observed() -> nn.Module:
    from torch.ao import quantization as q

    net = _net()
    net.train()
    net.qconfig = q.QConfig(
        activation=q.FakeQuantize.with_args(observer=q.MovingAverageMinMaxObserver),
        weight=q.FakeQuantize.with_args(
            observer=q.MovingAveragePerChannelMinMaxObserver, dtype=torch.qint8, qscheme=torch.per_channel_symmetric
        ),
    )
    made: nn.Module = q.prepare_qat(net)
    return made


CASES["ranges of a quantized model"] = _of(net=_observed)


class _Ragged(_Queue):
    """Its length is another one on each rank."""

    def keys(self, out: torch.Tensor) -> torch.Tensor:
        return out[out[:, 0] > 0]


# DDP itself cannot broadcast such a one.
CASES["a buffer of another length on each rank"] = _of(net=_Ragged, ddp={"broadcast_buffers": False})
CASES["FSDP2, a buffer of another length on each rank"] = lambda rank, world: _case(
    rank, world, net=_Ragged(), wrap=fully_shard, draws=False
)


class _Lookahead(torch.optim.Optimizer):
    """An optimizer around another one, with slow weights of its own."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.count = inner, 0
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}  # type: ignore[assignment]

    def step(self, closure: Any = None) -> None:
        self.inner.step()
        self.count += 1
        for group in self.param_groups:
            for param in group["params"]:
                kept = self.state[param].setdefault("slow", param.detach().clone())
                if self.count % 3 == 0:
                    kept.lerp_(param.detach(), 0.5)
                    param.data.copy_(kept)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {**self.inner.state_dict(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.inner.load_state_dict({k: v for k, v in state.items() if k != "count"})
        self.state, self.param_groups = self.inner.state, self.inner.param_groups


CASES["slow weights around another optimizer"] = _of(
    optimizer=lambda params: _Lookahead(torch.optim.AdamW(params, lr=1e-2))
)


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = nn.LSTM(8, 8, 2, dropout=0.1, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x[None])[0][0]


CASES["a recurrent net"] = _of(net=_Recurrent)

RARITIES = tuple(name for name in CASES if name not in _OTHERS)
"""The names of the cases that are made here."""
