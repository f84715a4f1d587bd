"""A training whose ranks are on several machines, and note each step that they have done, in a folder that all see.

    machine_trainer.py NOTES STEPS [PAUSE_S [CHECKPOINTS|- [sharded] [held]]]

A file of NOTES, <attempt>.<host>.<rank>.<pid>, begins with `from STEP of WORLD TIME`, has `STEP TIME` for each step and
ends with `bits DIGEST` if the rank came to the last step. TIME is the wall clock: the machines of one kernel share it.
CHECKPOINTS is for a launcher that has no run folder. `sharded`: each rank has a part of the model, by FSDP2. `held`:
the last 20 steps are not done before a file `end` is beside NOTES.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import xxhash
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from trainer.checkpoint import Checkpointer


def main(notes: str, steps: str, pause: str = "0.03", checkpoints: str = "-", *more: str) -> None:
    dist.init_process_group("gloo")
    attempt = os.environ.get("SUPERVISE_ATTEMPT") or os.environ["TORCHELASTIC_RESTART_COUNT"]
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(16, 64), nn.Dropout(0.1), nn.Linear(64, 1))
    ddp: nn.Module = fully_shard(model) if "sharded" in more else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=0.01)
    torch.manual_seed(dist.get_rank())
    folder = None if checkpoints == "-" else checkpoints
    ckpt = Checkpointer(model=ddp, optimizer=optimizer, directory=folder, every=20, snapshot_every=1)
    step = ckpt.restore()
    name = f"{attempt}.{socket.gethostname()}.{dist.get_rank()}.{os.getpid()}"
    with (Path(notes) / name).open("w", buffering=1) as out:
        out.write(f"from {step} of {dist.get_world_size()} {time.time():.4f}\n")
        while step < int(steps):
            while "held" in more and step >= int(steps) - 20 and not Path(notes).with_name("end").exists():
                time.sleep(0.01)
            optimizer.zero_grad()
            ddp(torch.randn(8, 16)).square().mean().backward()
            optimizer.step()
            step += 1
            ckpt.step(step)
            out.write(f"{step} {time.time():.4f}\n")
            time.sleep(float(pause))
        ckpt.close()
        tensors = [t.full_tensor() if isinstance(t, DTensor) else t for t in model.state_dict().values()]
        whole = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)
        out.write(f"bits {xxhash.xxh3_64_hexdigest(whole)}\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
