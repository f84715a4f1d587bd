"""A program: DDP trained on and resumed, on so many ranks; prints how many tensors differ, for each way to make DDP.

Arguments: a folder, "with" or "without" the order of the sums, and numbers of ranks.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel

from trainer.checkpoint import Checkpointer
from trainer.rank import torch_patches

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "accumulated": {},
    "a part of the model": {},
    "one of several": {},
}
STEPS = 3
"""DDP fills its buckets anew after its first backward: the second step is the first with those."""


class Net(nn.Module):
    """Its layers are used in another order than they are defined in."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.middle, self.norm = (
            nn.Linear(33, 16),
            nn.Linear(16, 64),
            nn.Linear(64, 33),
            nn.LayerNorm(64),
        )

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(torch.relu(self.middle(self.norm(self.first(x)))))


def _train(way: str, rank: int, steps: int, directory: Path) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """After each step that is done, up to `steps` of them: its number, and the weights."""
    torch.manual_seed(0)
    ddp = DistributedDataParallel(Net(), bucket_cap_mb=0.01, **WAYS[way])  # type: ignore[arg-type]
    optimizer = optim.AdamW(ddp.parameters(), lr=1e-2)
    model = nn.ModuleDict({"net": ddp.module}) if way == "a part of the model" else ddp
    given: Any = {"net": ddp} if way == "one of several" else model
    ckpt = Checkpointer(model=given, optimizer=optimizer, directory=directory, every=None)
    for step in range(ckpt.restore(), steps):
        optimizer.zero_grad()
        halves = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1000 * step + rank))
        for number, half in enumerate(halves):
            with ddp.no_sync() if way == "accumulated" and number == 0 else nullcontext():
                ddp(half).square().mean().backward()
        optimizer.step()
        ckpt.step(step + 1)
        yield step + 1, {name: tensor.clone() for name, tensor in ddp.module.state_dict().items()}
    ckpt.close()


def _differing(way: str, rank: int, folder: Path) -> int:
    """Tensors that are not the same to the bit, in runs that were resumed after each step, at their ends."""
    *_, (_, whole) = _train(way, rank, STEPS, folder / "whole")
    differing = 0
    for at in range(1, STEPS):
        list(_train(way, rank, at, folder / f"{at}"))
        *_, (_, resumed) = _train(way, rank, STEPS, folder / f"{at}")
        differing += sum(not torch.equal(whole[name], resumed[name]) for name in whole)
    return differing


def _rank(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    found = {way: _differing(way, rank, folder / way.replace(" ", "_")) for way in WAYS}
    if rank == 0:
        print(json.dumps({"ranks": world_size, **found}), flush=True)
    dist.destroy_process_group()


def main(folder: str, order: str, *ranks: str) -> None:
    if order == "without":
        torch_patches.fill_buckets = lambda ddp, order: False
    # Each rank looks for its DDPs among all objects, again and again.
    gc.freeze()
    for world_size in map(int, ranks):
        place = Path(folder) / str(world_size)
        place.mkdir()
        children = []
        for rank in range(world_size):
            pid = os.fork()
            if pid == 0:
                _rank(rank, world_size, place)
                os._exit(0)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        if any(codes):
            raise SystemExit(f"{world_size} ranks ended with {codes}")


if __name__ == "__main__":
    main(*sys.argv[1:])
