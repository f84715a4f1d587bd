"""Rarer layouts of state: FSDP2 with its options, copies of shards, stages, experts. Added to the other cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.utils.checkpoint import checkpoint

from tests.support.state_cases import Case, _batch, _case, _case_of, _net, _of
from tests.support.state_layers import _Stage
from tests.support.state_programs import CASES
from trainer.checkpoint import Shard

_OTHERS = frozenset(CASES)


class _Blocks(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3), nn.Tanh()) for _ in range(count))
        self.last = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.first(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.last(x)


CASES["activations made again, dropout"] = _of(net=_Blocks)


def _fsdp(net: nn.Module, mesh: Any = None, **options: Any) -> Any:
    for block in getattr(net, "blocks", ()):
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(net, mesh=mesh, **options)


def _hsdp_mesh(world: int) -> Any:
    shape = (world, 1) if world % 2 else (world // 2, 2)
    return init_device_mesh("cpu", shape, mesh_dim_names=("copies", "shards"))


CASES["FSDP2, activations made again, dropout"] = lambda rank, world: _case(
    rank, world, net=_Blocks(), wrap=_fsdp, draws=False
)
CASES["HSDP"] = lambda rank, world: _case(
    rank, world, net=_Blocks(), wrap=lambda net: _fsdp(net, _hsdp_mesh(world)), draws=False
)
CASES["FSDP2, offloaded"] = lambda rank, world: _case(
    rank, world, net=_Blocks(), wrap=lambda net: _fsdp(net, offload_policy=CPUOffloadPolicy(pin_memory=False))
)
CASES["FSDP2, SGD and BatchNorm"] = lambda rank, world: _case(
    rank, world, net=_net(norm=True), wrap=_fsdp, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)
)


def _bf16(mesh_of: Callable[[int], Any], copies: bool = False) -> Callable[[int, int], Case]:
    """Micro-batches in bf16, not reduced before the last one, then clipped."""

    def made(rank: int, world: int) -> Case:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        net: Any = _fsdp(_Blocks(), mesh_of(world), mp_policy=policy)
        opt = torch.optim.AdamW(net.parameters(), lr=1e-2)

        def step(number: int) -> None:
            last = number % 3 == 2
            if copies:
                net.set_requires_all_reduce(last)
            else:
                net.set_requires_gradient_sync(last)
            net(_batch(number, rank).bfloat16()).float().square().mean().backward()
            if last:
                nn.utils.clip_grad_norm_(net.parameters(), 0.1)
                opt.step()
                opt.zero_grad()

        return Case({"model": net, "optimizer": opt, "grads": True}, step, lambda: [net.state_dict(), opt.state_dict()])

    return made


CASES["FSDP2 in bf16, accumulated and clipped"] = _bf16(lambda world: None)
CASES["HSDP, reduced among the shards only"] = _bf16(_hsdp_mesh, copies=True)


class _TiedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)
        self.down.weight = self.up.weight
        # A single value: the part of each rank but one is empty.
        self.first = self.last = nn.PReLU()

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.down(self.first(self.up(x))))


CASES["FSDP2, tied"] = lambda rank, world: _case(rank, world, net=_TiedNet(), wrap=_fsdp, draws=False)
CASES["FSDP2, compiled"] = lambda rank, world: _case(
    rank, world, wrap=lambda net: torch.compile(_fsdp(net), backend="eager"), draws=False
)


@_case_of("FSDP2, frozen and adapters")
def _adapters(rank: int, world: int) -> Case:
    net = _Blocks()
    for name, param in net.named_parameters():
        param.requires_grad_("blocks" in name)
    return _case(rank, world, net=net, wrap=_fsdp, draws=False)


def _gpipe(several: bool) -> Callable[[int, int], Case]:
    """`several`: each rank has two stages that are not neighbours."""

    def made(rank: int, world: int) -> Case:
        mine = [rank, rank + world] if several else [rank]
        of = world * len(mine)
        nets = {f"stage{number}": _Stage(range(number * 8 // of, (number + 1) * 8 // of)) for number in mine}
        opt = torch.optim.AdamW([p for net in nets.values() for p in net.parameters()], lr=1e-2)
        stages = [
            PipelineStage(
                net,
                number,
                of,
                torch.device("cpu"),
                input_args=torch.zeros(3, 8, requires_grad=number > 0),
                output_args=torch.zeros(3, 8, requires_grad=True),
            )
            for number, net in zip(mine, nets.values(), strict=True)
        ]

        def loss(out: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            return (out - wanted).square().mean()

        schedule: Any = (
            ScheduleInterleaved1F1B(stages, 4, loss_fn=loss) if several else ScheduleGPipe(stages[0], 4, loss_fn=loss)
        )

        def step(number: int) -> None:
            opt.zero_grad()
            batch = [_batch(number, 0)] if 0 in mine else []
            schedule.step(*batch, **({"target": _batch(number, 0, 7)} if of - 1 in mine else {}))
            opt.step()

        return Case(
            {"model": nets, "optimizer": opt}, step, lambda: [[n.state_dict() for n in nets.values()], opt.state_dict()]
        )

    return made


CASES["GPipe"], CASES["two stages on each rank"] = _gpipe(False), _gpipe(True)


class _Experts(nn.Module):
    """A router that all have, and experts of which each rank has some, in one tensor."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.router, experts = nn.Linear(8, 8), torch.randn(8, 8, 8) / 3
        self.experts = nn.Parameter(experts.chunk(world)[rank].clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.router(x) + torch.einsum("bi,eio->bo", x, self.experts)


@_case_of("experts by hand")
def _experts(rank: int, world: int) -> Case:
    net = _Experts(rank, world)
    opt = torch.optim.AdamW(net.parameters(), lr=1e-2)
    spec = {"experts": Shard(0, rank, world)}

    def step(number: int) -> None:
        opt.zero_grad()
        net(_batch(number, rank)).square().mean().backward()
        for param in net.router.parameters():
            assert param.grad is not None
            torch.distributed.all_reduce(param.grad)
        opt.step()

    given = {"model": net, "optimizer": opt, "shard_spec": spec}
    return Case(given, step, lambda: [net.state_dict(), opt.state_dict()])


LAYOUTS = frozenset(CASES) - _OTHERS
"""The names of the cases that are made here."""
