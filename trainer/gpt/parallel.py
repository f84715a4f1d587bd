"""This rank among the others: its device, its threads, DDP, and agreement between the ranks."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import UsageError
from .config import Place, TrainConfig
from .model import GPT


def device_of(config: TrainConfig, place: Place) -> torch.device:
    """The device that this rank trains on; it is now the current device. UsageError if there is none."""
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise UsageError("--device cuda: torch sees no CUDA device; use --device cpu, or mend the driver")
    if config.device == "cpu" or not there:
        return torch.device("cpu")
    if place.local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"local rank {place.local_rank} has no GPU of its own, there are {torch.cuda.device_count()}; start fewer "
            "ranks, or use --device cpu"
        )
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


def set_threads(config: TrainConfig, place: Place) -> None:
    """torch computes with the number of threads in `config`, else with this rank's part of the machine's cores."""
    # Not left to OMP_NUM_THREADS, which torchrun sets and other launchers do not. With another number of threads, sums
    # differ in their last bits, and a resumed run must add up like the first one.
    torch.set_num_threads(config.threads or max(1, len(os.sched_getaffinity(0)) // place.local_world_size))


def join(device: torch.device) -> None:
    """The ranks' process group exists: NCCL on GPUs, else gloo."""
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def parallel(model: GPT, device: torch.device) -> nn.Module:
    """`model` under DDP."""
    return nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def agree(loss: Tensor, *flags: bool, world_size: int) -> tuple[Any, ...]:
    """(mean loss over ranks, then for each flag whether any rank has set it), the same on every rank."""
    if world_size == 1:
        return loss.item(), *flags
    shared = torch.tensor([0.0, *flags], dtype=torch.float64, device=loss.device)
    shared[0] = loss
    dist.all_reduce(shared)
    total, *counts = shared.tolist()
    return total / world_size, *(count > 0 for count in counts)
