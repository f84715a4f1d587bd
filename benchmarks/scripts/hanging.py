"""A DDP script that nobody prepared for supervision. Rank 1 gets stuck at step 40, in each attempt in the next of the
ways that the first argument names (`lock,gil`), and then no more; the second argument is the seconds that a step
sleeps.
"""

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

kinds = sys.argv[1].split(",")
attempt = int(os.environ["SUPERVISE_ATTEMPT"])
kind = kinds[attempt] if attempt < len(kinds) else "none"
pause = float(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()


class Data(Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, i):
        if kind == "worker" and rank == 1 and i == 43:
            stuck_item()
        return torch.full((8,), float(i))


def stuck_item():
    struck()
    while True:
        time.sleep(0.5)


def locked():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def read_fifo():
    os.open("fifo", os.O_RDWR)
    Path("fifo").read_text()


def hold_gil():
    re.match(r"(a+)+$", "a" * 64 + "b")


def loop():
    while True:
        pass


def skip():
    dist.barrier()


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def struck():
    """For a benchmark: when it happened, by the clock of the supervisor's events."""
    Path("struck").write_text(str(time.monotonic()))


faults = {
    "stop": stop,
    "lock": locked,
    "fifo": read_fifo,
    "gil": hold_gil,
    "loop": loop,
    "skip": skip,
    "beside": locked,
}
model = DistributedDataParallel(nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
# `beside`: workers without work stand beside the lock.
workers = 1 if kind in ("worker", "beside") else 0
for step, x in enumerate(DataLoader(Data(), batch_size=1, num_workers=workers)):
    if step == 60:
        break
    if step == 40 and rank == 1 and kind in faults:
        struck()
        faults[kind]()
    model(x).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(pause)
    if rank == 0 and step % 10 == 0:
        torch.save(model.state_dict(), "weights.pt")
dist.destroy_process_group()
