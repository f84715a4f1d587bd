"""The built-in GPT, trained with the saving and loading of PyTorch's DDP tutorial in place of ours.

Rank 0 calls torch.save every 20 steps; a start loads that file, if there is one. Takes the flags of `python -m
trainer`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from trainer.gpt.config import parse, place
from trainer.gpt.loop import build
from trainer.gpt.schedule import learning_rate

EVERY = 20


def main() -> None:
    config, here = parse(sys.argv[1:]), place()
    parts = build(config, here)
    model, optimizer = parts.model, parts.optimizer
    path = Path("snapshot.pt")
    start = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    for step in range(start, config.steps):
        tokens, targets = parts.batches(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        loss = parts.forward(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # As the built-in loop does it: the mean over the ranks, known to all.
        mean = loss.detach()
        dist.all_reduce(mean)
        if here.rank == 0 and (step + 1) % EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
