"""A healthy DDP script that nobody prepared for supervision, and that is slow at random: steps up to twenty times as
long as usual on one rank (asleep, or computing), saves of seconds that sync, evaluations of half a minute, waits for a
network.

Arguments: the usual seconds of a step, a seed. It goes on until it is stopped.
"""

import os
import random
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

usual, seed = float(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
model = DistributedDataParallel(nn.Linear(64, 64))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
# Both ranks draw the same numbers, so that they agree on what happens at a step.
pick = random.Random(seed)


def compute(seconds):
    """At least so long, all of it on the CPU."""
    end = time.monotonic() + seconds
    x = torch.randn(64, 64)
    while time.monotonic() < end:
        x = torch.tanh(x @ x)


def save(parts):
    """A large file, written slowly and synced."""
    with Path("weights.pt").open("wb") as file:
        for _ in range(parts):
            torch.save(model.state_dict(), file)
            file.write(os.urandom(1 << 22))
            time.sleep(0.2)
        file.flush()
        os.fsync(file.fileno())


step = 0
while True:
    step += 1
    mood, who, factor = pick.random(), pick.randrange(2), pick.uniform(2.0, 20.0)
    if mood < 0.01 and who == rank:
        time.sleep(factor * usual)
    elif mood < 0.02 and who == rank:
        compute(factor * usual)
    else:
        time.sleep(usual / 2)
        compute(usual / 2)
    model(torch.randn(8, 64)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 100 == 0:
        parts = pick.randrange(4, 16)
        if rank == 0:
            save(parts)
        dist.barrier()
    if step % 400 == 0:
        # An evaluation that says nothing: every rank computes, then rank 0 waits for something far away.
        computed, waited = pick.uniform(5.0, 30.0), pick.uniform(2.0, 15.0)
        compute(computed)
        if rank == 0:
            time.sleep(waited)
        dist.barrier()
