"""A program: a run whose state is sharded, killed again and again, each time to go on in another layout.

Arguments: a folder, "memory" or "disk", and layouts as "fsdp:4", or "fsdp+grows:4" for one with a special part. In each
the ranks restore, compare, train some steps and are all killed. Prints a line of JSON for each: what differs between
the state restored and that at the kill.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from trainer.checkpoint import Checkpointer
from trainer.checkpoint.errors import ReplicasDiffer
from trainer.checkpoint.memory.tier import Wish
from trainer.rank.progress import progress
from trainer.rundir.machine import shm

STEPS = 3
"""Steps of each layout."""


class Net(nn.Module):
    """Most of its sizes are uneven, and the last layer is smaller than some numbers of ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 36), nn.Linear(36, 13)
        self.norm, self.last = nn.LayerNorm(13), nn.Linear(13, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.norm(self.down(torch.relu(self.up(x)))))


class Rows(torch.optim.AdamW):
    """It also has a state of another shape than its parameter."""

    def step(self, closure: Any = None) -> Any:
        done = super().step(closure)
        for param in self.param_groups[0]["params"]:
            if param.dim() > 1:
                self.state[param]["rows"] = param.detach().abs().mean(dim=1, keepdim=True)
        return done


def _sharded(net: nn.Module, mesh: Any = None, **options: Any) -> nn.Module:
    for layer in net.children():
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(net, mesh=mesh, **options)


def laid_out(kind: str, world: int, net: nn.Module) -> nn.Module:
    """`net`, as that layout has it."""
    slices = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    half = (world // 2, 2)
    match kind:
        case "fsdp":
            return _sharded(net)
        case "kept":
            return _sharded(net, reshard_after_forward=False)
        case "tp":
            return parallelize_module(net, init_device_mesh("cpu", (world,)), slices)
        case "2d":
            mesh = init_device_mesh("cpu", half, mesh_dim_names=("dp", "tp"))
            return _sharded(parallelize_module(net, mesh["tp"], slices), mesh["dp"])
        case "hsdp":
            return _sharded(net, init_device_mesh("cpu", half, mesh_dim_names=("copies", "shards")))
        case "ddp":
            return DistributedDataParallel(net)
    return net


def full(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The weights and the optimizer's states by name, each whole. All ranks call it."""
    model = getattr(model, "module", model)
    found = dict(model.state_dict())
    for name, param in model.named_parameters():
        found.update({f"{name}/{key}": value for key, value in optimizer.state.get(param, {}).items()})
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value.clone() for name, value in found.items()
    }


def _rank(kind: str, rank: int, world: int, number: int, place: Path, options: dict[str, Any]) -> None:
    kind, _, extras = kind.partition("+")
    torch.set_num_threads(1)
    if kind != "one":
        store = dist.FileStore(str(place / f"store-{number}"), world)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.manual_seed(number)
    model = laid_out(kind, world, Net())
    make = Rows if "rows" in extras else torch.optim.AdamW
    # The order of parameters is another one each time: names lead from one to the next.
    params = list(model.parameters())
    optimizer = make(params if number % 2 else params[::-1], lr=1e-2)
    seen = torch.zeros(3)
    ckpt = Checkpointer(
        model=model,
        optimizer=optimizer,
        directory=place / "run/checkpoints",
        extra=lambda: {"seen": seen, "held": dict(model.named_parameters()).get("up.weight")},
        **options,
    )
    told: list[str] = []
    progress().note = lambda what, **fields: told.append(f"{what}: {fields}")  # type: ignore[method-assign,assignment]
    start = ckpt.restore()
    restored = full(model, optimizer)
    before = torch.load(place / "state.pt") if number else {}
    differ = sorted(name for name in before if name not in restored or not torch.equal(before[name], restored[name]))
    more = sorted(restored.keys() - before.keys()) if number else []
    source = next((line for line in told if line.startswith("resumed")), "")
    if rank == 0:
        found = {"layout": f"{kind}:{world}", "start": start, "differ": differ, "more": more, "told": source}
        print(json.dumps(found), flush=True)
    for step in range(start, start + STEPS):
        if "grows" in extras and step == start + 1:
            seen = torch.zeros(5)
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        ckpt.step(step + 1)
    if ckpt._tier is not None:
        memory = ckpt._tier._memory
        memory.wait()
        assert memory.problem is None
        # Where a tensor grew, the ranks had to agree anew: in the next step, or in a comparison that was due before.
        assert memory.left_out is None or ("grows" in extras and memory.left_out == start + 2)
    if "drifts" in extras:
        _drift(rank, model, ckpt, start + STEPS + 1)
    state = full(model, optimizer)
    if rank == 0:
        torch.save(state, place / "state.pt")
    if kind != "one":
        dist.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def _drift(rank: int, model: nn.Module, ckpt: Checkpointer, step: int) -> None:
    """One of the two copies of a box becomes another one: every rank is told."""
    if rank == 2:
        with torch.no_grad():
            local: Any = model.get_parameter("norm.weight")
            local.to_local()[0] += 1
    try:
        ckpt.step(step, Wish(compare=True))
    except ReplicasDiffer as error:
        os.write(1, json.dumps({"drifted": str(error), "rank": rank}).encode() + b"\n")


def killed(kind: str, world: int, number: int, place: Path, options: dict[str, Any]) -> list[int]:
    """That layout restores, trains and is killed; the exit codes of its ranks."""
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            try:
                _rank(kind, rank, world, number, place, dict(options))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def main(folder: str, tier: str, *layouts: str) -> None:
    # The ranks are forks: what was imported is looked through and copied by none of them.
    gc.freeze()
    place = Path(folder)
    (place / "run").mkdir()
    options: dict[str, Any] = {"every": STEPS}
    if tier == "memory":
        shm.ROOT = place / "shm"
        shm.ROOT.mkdir()
        os.environ["SUPERVISE_RUN_DIR"] = str(place / "run")
        options = {"every": None, "snapshot_every": 1}
    for number, layout in enumerate(layouts):
        kind, world = layout.split(":")
        if tier == "memory":
            os.environ.update(SUPERVISE_MARK=f"m.{number}", SUPERVISE_ATTEMPT=str(number))
        codes = killed(kind, int(world), number, place, options)
        if codes != [-signal.SIGKILL] * int(world):
            raise SystemExit(f"{layout} ended with {codes}")


if __name__ == "__main__":
    main(*sys.argv[1:])
