"""A DDP script as people write them: it knows nothing of any supervisor, saves with torch.save and resumes by itself.

torchrun --nproc-per-node 2 own_resume.py [--steps N] [--save-every 10] [--out DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def build() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(256, 64), body, nn.Linear(64, 256))


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, temporary)
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("out"))
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = build()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    options.out.mkdir(exist_ok=True)
    path = options.out / "checkpoint.pt"
    start = 0
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    print(f"rank {rank} starts at step {start}", flush=True)

    for step in range(start, options.steps):
        data = torch.Generator().manual_seed(1000 * step + rank)
        tokens = torch.randint(0, 256, (4, 65), generator=data)
        logits = ddp(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0 and (step + 1) % options.save_every == 0:
            save(path, model, optimizer, step + 1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
