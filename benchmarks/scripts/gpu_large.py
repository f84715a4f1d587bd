"""302 M parameters, bf16, AdamW: 3.6 GB of state. Each step is written down when its loss is known.

gpu_large.py LOG [--snapshot-every N|auto|off] [--steps N] [--small] [--device cuda|cpu]
"""

from __future__ import annotations

import argparse
import json
import os
import time

import torch

from trainer.checkpoint import Checkpointer
from trainer.checkpoint.memory.snapshots import newest_snapshot
from trainer.gpt.model import GPT, GPTConfig
from trainer.rundir.machine.shm import segment_here


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--snapshot-every", default="auto")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    layers, width, heads, batch, block = (2, 64, 2, 2, 16) if given.small else (24, 1024, 16, 16, 512)
    device = torch.device(given.device)
    began = time.monotonic()
    torch.manual_seed(0)
    with device:
        model = GPT(GPTConfig(block, layers, heads, width, 0.0))
    optimizer = torch.optim.AdamW(model.parameter_groups(0.1), lr=1e-4, fused=True)
    every = given.snapshot_every

    def learn(step: int) -> torch.Tensor:
        x = torch.randint(0, 256, (batch, block), device=device, generator=torch.Generator(device).manual_seed(step))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss: torch.Tensor = model(x, x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    ckpt = Checkpointer(
        model=model,
        optimizer=optimizer,
        every=None,
        snapshot_every="auto" if every == "auto" else None if every == "off" else int(every),
        park=True,
        warm_up=lambda: learn(0),
    )
    built = time.monotonic()
    start = ckpt.restore()
    segment, log = segment_here(), os.open(given.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    head = {"pid": os.getpid(), "start": start, "built_s": built - began, "restore_s": time.monotonic() - built}
    os.write(log, json.dumps(head).encode() + b"\n")
    for step in range(start, given.steps):
        loss = learn(step)
        asked = time.monotonic()
        value = loss.item()
        done = time.monotonic()
        ckpt.step(step + 1)
        line = {
            "pid": os.getpid(),
            "step": step + 1,
            "at": done,
            "item_s": done - asked,
            "took_s": time.monotonic() - done,
            "snapshot": newest_snapshot(segment) if segment and segment.exists() else None,
            "loss": value,
        }
        os.write(log, json.dumps(line).encode() + b"\n")
    os._exit(0)  # what it would save at its end is not asked for


if __name__ == "__main__":
    main()
