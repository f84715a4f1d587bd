"""A rank of a training whose ranks are on several nodes, started by torchrun itself. It writes a digest of all that it
has, weights, optimizer, generators, after every step: DIGESTS/rank<r>.<attempt>.

    node_trainer.py STEPS DIGESTS CHECKPOINTS EVERY SNAPSHOT_EVERY|none [sharded] [die=RANK@STEP]
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from trainer.checkpoint import Checkpointer, PerRank
from trainer.checkpoint.sharded.held import local_of


def digest(model: nn.Module, optimizer: torch.optim.Optimizer, extra: list[int]) -> str:
    """Of every bit that the rank goes on from."""
    found = xxhash.xxh3_64()
    states: list[Any] = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    for tensor in [*model.state_dict().values(), *states, torch.get_rng_state()]:
        tensor = local_of(tensor).detach()
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return f"{found.hexdigest()} {extra}"


def main(steps: str, digests: str, checkpoints: str, every: str, snapshot_every: str, *more: str) -> None:
    dist.init_process_group("gloo")
    rank, attempt = dist.get_rank(), os.environ.get("SUPERVISE_ATTEMPT", "-")
    die = [word.removeprefix("die=") for word in more if word.startswith("die=")]
    dying = dict(at.split("@") for at in die[0].split(",")) if die else {}
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.2), nn.Linear(32, 1))
    ddp: nn.Module = model
    if "sharded" in more:
        fully_shard(model)
    else:
        ddp = DistributedDataParallel(model, broadcast_buffers=False)
    torch.manual_seed(rank)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=0.01)
    drawn: list[int] = []
    ckpt = Checkpointer(
        model=ddp,
        optimizer=optimizer,
        extra=lambda: {"drawn": PerRank(drawn), "noted": len(drawn)},
        directory=None if checkpoints == "-" else checkpoints,
        every=int(every),
        snapshot_every=None if snapshot_every == "none" else int(snapshot_every),
    )
    start = ckpt.restore()
    drawn[:] = ckpt.extra.get("drawn") or []
    with (Path(digests) / f"rank{rank}.{attempt}").open("w", buffering=1) as out:
        out.write(f"from {start}\n")
        for step in range(start, int(steps)):
            drawn.append(int(torch.randint(0, 1000, ())))
            loss = ddp(torch.randn(16, 8) + drawn[-1] / 1000).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ckpt.step(step + 1)
            out.write(f"{step + 1} {digest(model, optimizer, drawn[-3:])}\n")
            if str(step + 1) in dying.values() and ckpt._tier is not None:
                # Of a step that nobody has heard of, nothing is promised.
                ckpt._tier._memory.settle()
                dist.barrier()
            if int(dying.get(str(rank), -1)) == step + 1:
                os.kill(os.getpid(), signal.SIGKILL)
        ckpt.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
