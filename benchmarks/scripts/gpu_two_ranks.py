"""Ranks that share one GPU, with gloo: DDP, and a Checkpointer. The end is written to END.

gpu_two_ranks.py END [--device cuda|cpu] [--steps 60]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer.checkpoint import Checkpointer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("end", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    device = torch.device(given.device)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(512, 512), nn.Dropout(0.1), nn.Linear(512, 512)).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ckpt = Checkpointer(model=model, optimizer=optimizer, every=None, snapshot_every=1)
    torch.manual_seed(dist.get_rank())
    for step in range(ckpt.restore(), given.steps):
        data = torch.Generator().manual_seed(1000 * step + dist.get_rank())
        loss = model(torch.randn(16, 512, generator=data).to(device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ckpt.step(step + 1)
        time.sleep(0.01)
    ckpt.close()
    if dist.get_rank() == 0:
        torch.save([p.detach().cpu() for p in model.parameters()], given.end)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
