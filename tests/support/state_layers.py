"""State that ranks hold in parts: layers by FSDP2 and tensor parallelism, slices by hand, stages. Added to the other
cases."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.support.state_cases import CASES, Case, Made, _batch, _case, _case_of, _net
from trainer.checkpoint import PerRank, Shard


def _layers(kind: str, world: int, policy: Any = MixedPrecisionPolicy()) -> nn.Module:  # noqa: B008
    net, slices = _net(), {"0": ColwiseParallel(), "2": RowwiseParallel()}
    if kind == "TP":
        return parallelize_module(net, init_device_mesh("cpu", (world,)), slices)
    mesh = None
    if kind == "2-D" and world > 2:
        both = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
        net, mesh = parallelize_module(net, both["tp"], slices), both["dp"]
    return fully_shard(net, mesh=mesh, mp_policy=policy)


def _of_layers(kind: str) -> Made:
    def made(rank: int, world: int) -> Case:
        # Ranks that hold parts of one layer have the same batch.
        reads = {"TP": 0, "2-D": rank // 2 if world > 2 else rank}.get(kind, rank)
        return _case(reads, world, wrap=lambda net: _layers(kind, world), draws=False)

    return made


CASES.update({kind: _of_layers(kind) for kind in ("FSDP2", "TP", "2-D")})


def _accumulated(kind: str, reduced: bool, dtype: torch.dtype | None = None) -> Made:
    """Gradients of DTensors that wait; `reduced`: as parts, else whole on each rank, where FSDP2 keeps them."""

    def made(rank: int, world: int) -> Case:
        net: Any = _layers(kind, world, MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32))
        opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

        def step(number: int) -> None:
            last = number % 3 == 2
            if not reduced:
                net.set_requires_gradient_sync(last)
            net(_batch(number, 0 if kind == "TP" else rank)).square().mean().backward()
            if last:
                opt.step()
                opt.zero_grad()

        return Case({"model": net, "optimizer": opt, "grads": True}, step, lambda: [net.state_dict(), opt.state_dict()])

    return made


CASES["parts of gradients that wait"] = _accumulated("FSDP2", True)
CASES["parts of gradients that wait, TP"] = _accumulated("TP", True)
CASES["gradients that FSDP2 keeps"] = _accumulated("FSDP2", False)
CASES["gradients that FSDP2 keeps, of another type"] = _accumulated("FSDP2", False, torch.bfloat16)


def _alone(net: nn.Module, rank: int, world: int, **given: Any) -> Case:
    """Each rank trains its part alone."""
    return _case(rank, world, net=net, wrap=lambda net: net, **given)


def _drawn(rank: int) -> nn.Sequential:
    net = _net()
    with torch.no_grad():
        for param in net.parameters():
            param.add_(rank)
    return net


CASES["slices, declared"] = lambda rank, world: _alone(
    _drawn(rank), rank, world, shard_spec={"*": Shard(0, rank, world)}
)
CASES["slices, undeclared"] = CASES["stages of equal names"] = lambda rank, world: _alone(_drawn(rank), rank, world)
CASES["stages, marked"] = lambda rank, world: _marked(_alone(_drawn(rank), rank, world))


def _marked(case: Case) -> Case:
    case.given["model"] = PerRank(case.given["model"])
    return case


@_case_of("stages by their names")
def _stages(rank: int, world: int) -> Case:
    net = nn.Sequential(OrderedDict([(f"layer{rank}", nn.Linear(8, 8)), (f"norm{rank}", nn.LayerNorm(8))]))
    with torch.no_grad():
        for number, param in enumerate(net.parameters()):
            param.fill_(0.1 * (rank + number))
    return _alone(net, rank, world)


class _Stage(nn.Module):
    def __init__(self, numbers: range) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(number): nn.Linear(8, 8) for number in numbers})
        with torch.no_grad():
            for number, param in enumerate(self.parameters()):
                param.copy_(torch.sin(torch.arange(param.numel()) + number + numbers.start).reshape(param.shape) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers.values():
            x = layer(x).tanh()
        return x


def _pipeline(wrap: str) -> Made:
    """torch's own schedule over stages; wrapped: two stages, each on half of the ranks."""

    def made(rank: int, world: int) -> Case:
        stages = 2 if wrap else world
        mesh = init_device_mesh("cpu", (stages, world // stages), mesh_dim_names=("pp", "dp"))
        here, copy_ = mesh["pp"].get_local_rank(), mesh["dp"].get_local_rank()
        net: Any = _Stage(range(here * 8 // stages, (here + 1) * 8 // stages))
        given: Any = fully_shard(net, mesh=mesh["dp"]) if wrap == "FSDP2" else net
        if wrap == "DDP":
            given = DistributedDataParallel(net, process_group=mesh["dp"].get_group())
        opt = torch.optim.AdamW(net.parameters(), lr=1e-2)
        shapes = {
            "input_args": torch.zeros(3, 8, requires_grad=here > 0),
            "output_args": torch.zeros(3, 8, requires_grad=True),
        }
        stage = PipelineStage(given, here, stages, torch.device("cpu"), group=mesh["pp"].get_group(), **shapes)
        schedule = Schedule1F1B(stage, 4, loss_fn=lambda out, wanted: (out - wanted).square().mean())

        def step(number: int) -> None:
            opt.zero_grad()
            batch = [_batch(number, copy_)] if here == 0 else []
            schedule.step(*batch, **({"target": _batch(number, copy_, 7)} if here == stages - 1 else {}))
            opt.step()

        return Case({"model": given, "optimizer": opt}, step, lambda: [net.state_dict(), opt.state_dict()])

    return made


CASES["a pipeline"], CASES["a pipeline of DDPs"], CASES["a pipeline of FSDP2"] = map(_pipeline, ("", "DDP", "FSDP2"))
