"""A tiny model beside so many megabytes of state, which every snapshot holds: stateful.py MEGABYTES."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from trainer.checkpoint import Checkpointer

dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Linear(16, 16)
# It is trained by nobody, so that a step stays a step; saved and restored it is like everything else.
model.beside = torch.nn.Parameter(torch.randn(int(sys.argv[1]) * 250_000), requires_grad=False)
ddp = DistributedDataParallel(model)
optimizer = torch.optim.AdamW((p for p in ddp.parameters() if p.requires_grad), lr=1e-3)
checkpointer = Checkpointer(model=ddp, optimizer=optimizer, every=None, park=True)
for step in range(checkpointer.restore(), 10**6):
    loss = ddp(torch.randn(32, 16, generator=torch.Generator().manual_seed(step))).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    checkpointer.step(step + 1)
