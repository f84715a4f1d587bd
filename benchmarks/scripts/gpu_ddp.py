"""A DDP script as people write them for GPUs: NCCL, some large layers, torch.save every 20 steps, its own resume.

torchrun --nproc-per-node 1 gpu_ddp.py [--steps N] [--save-every 20] [--out DIR] [--device cuda|cpu]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()

    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    device = torch.device(options.device)
    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.manual_seed(0)
    width = 1448
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(6))).to(device)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    options.out.mkdir(exist_ok=True)
    path = options.out / "checkpoint.pt"
    start = 0
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    print(f"starts at step {start}", flush=True)

    for step in range(start, options.steps):
        x = torch.randn(256, width, generator=torch.Generator().manual_seed(step)).to(device)
        loss = ddp(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        if dist.get_rank() == 0 and (step + 1) % options.save_every == 0:
            temporary = path.with_suffix(".tmp")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, temporary)
            temporary.replace(path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
