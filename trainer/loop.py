"""The training loop, for one process and for DDP alike."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.checkpoint import rng
from trainer.checkpoint.checkpointer import Checkpointer
from trainer.config import Place, TrainConfig
from trainer.data import Batches, load_bytes
from trainer.errors import UsageError
from trainer.metrics import Metrics
from trainer.model import GPT, GPTConfig
from trainer.progress import Phase, progress
from trainer.rundir.environment import supervised
from trainer.schedule import learning_rate

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _device(config: TrainConfig, place: Place) -> torch.device:
    """The device that this rank trains on, made current; UsageError if there is none."""
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise UsageError("--device cuda: torch sees no CUDA device; use --device cpu, or mend the driver")
    if config.device == "cpu" or not there:
        return torch.device("cpu")
    if place.local_rank >= torch.cuda.device_count():
        raise UsageError(f"local rank {place.local_rank} has no GPU: there are {torch.cuda.device_count()}")
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


def _threads(config: TrainConfig, place: Place) -> int:
    # Not left to OMP_NUM_THREADS, which torchrun sets and others do not: sums over other numbers of threads differ in
    # their last bits, and a resumed run has to add up as the first one did.
    return config.threads or max(1, len(os.sched_getaffinity(0)) // place.local_world_size)


def _parallel(model: GPT, device: torch.device, config: TrainConfig) -> nn.Module:
    """`model` under DDP, its buckets in their final order."""
    ddp = nn.parallel.DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)
    # After its first backward pass DDP sorts its buckets anew, by the order in which gradients came. With three ranks and
    # more, an all-reduce adds up each element in an order that depends on where in a bucket it lies. So the first step
    # after a resume would differ in its last bits from the same step of a run that went on. One token through forward and
    # backward here has that behind every run before its first step.
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    ddp(token, token).backward()
    ddp.zero_grad(set_to_none=True)
    return ddp


def _agree(loss: Tensor, stop: bool, save: bool, world_size: int) -> tuple[float, bool, bool]:
    """(mean loss over ranks, whether any rank is to stop, whether any wants to save), the same on every rank."""
    if world_size == 1:
        return loss.item(), stop, save
    shared = torch.tensor([0.0, stop, save], dtype=torch.float64, device=loss.device)
    shared[0] = loss
    dist.all_reduce(shared)
    total, stops, saves = shared.tolist()
    return total / world_size, stops > 0, saves > 0


def train(config: TrainConfig, place: Place) -> None:
    """`config.steps` steps are done and saved. UsageError, CheckpointError, or SystemExit(75) after a stop was asked for."""
    torch.set_num_threads(_threads(config, place))
    device = _device(config, place)
    batches = Batches(
        load_bytes(config.data, config.seed),
        config.batch_size,
        config.block_size,
        config.seed,
        place.rank,
        place.world_size,
    )
    if place.world_size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")

    rng.seed(config.seed)
    model = GPT(GPTConfig(config.block_size, config.n_layer, config.n_head, config.n_embd, config.dropout)).to(device)
    trained: nn.Module = _parallel(model, device, config) if place.world_size > 1 else model
    optimizer = torch.optim.AdamW(model.parameter_groups(config.weight_decay), lr=config.lr, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    autocast = torch.autocast(device.type, dtype=_AMP[config.amp]) if config.amp != "off" else contextlib.nullcontext()
    # Before the restore, which puts its own state over it: dropout of a fresh run differs from rank to rank.
    rng.seed(config.seed, place.rank, 0)

    here = supervised()
    root = here.run.path if here else Path(config.out)
    metrics = Metrics(here.run.metrics if here else root / "metrics.jsonl") if place.rank == 0 else None
    ckpt = Checkpointer(
        model=model,
        optimizer=optimizer,
        scaler=scaler,
        data=batches,
        extra={"config": asdict(config)},
        directory=config.checkpoint_dir or root / "checkpoints",
        every=config.checkpoint_every,
        keep=config.keep,
        resume=config.resume,
        seed=config.seed,
        seal=metrics.sync if metrics else lambda: None,
    )
    start = ckpt.restore()
    if metrics:
        metrics.resume_at(start)
    log = _Log(config, place, start)
    log.say(
        f"{'resumed at' if start else 'started at'} step {start} of {config.steps} on {place.world_size} x {device}"
    )
    if batches.changed:
        log.say("the data or seed is not what the checkpoint was trained on: the run goes on with the new")

    progress().phase(Phase.FIRST_STEP)
    for step in range(start, config.steps):
        tokens, targets = (part.to(device, non_blocking=True) for part in batches(step))
        lr = learning_rate(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr

        with autocast:
            loss = trained(tokens, targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or float("inf"))
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        mean, stop, save = _agree(loss.detach(), *ckpt.wish(), world_size=place.world_size)
        done = step + 1
        if metrics:
            tokens_seen = done * config.batch_size * config.block_size
            metrics.write(step=done, loss=mean, lr=lr, grad_norm=norm.item(), tokens=tokens_seen)
        log.step(done, mean, lr)
        ckpt.step(done, stop=stop and done < config.steps, save=save)

    progress().phase(Phase.TEARDOWN)
    ckpt.close()
    if metrics:
        metrics.close()


class _Log:
    """What rank 0 prints for people, to stderr."""

    def __init__(self, config: TrainConfig, place: Place, start: int) -> None:
        self._config = config
        self._quiet = place.rank != 0
        self._at = (start, time.monotonic())

    def say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def step(self, done: int, loss: float, lr: float) -> None:
        if self._quiet or (done % self._config.log_every and done != self._config.steps):
            return
        since, then = self._at
        now = time.monotonic()
        self._at = (done, now)
        per_step = (now - then) / max(1, done - since)
        rate = self._config.batch_size * self._config.block_size / per_step
        self.say(f"step {done}  loss {loss:.4f}  lr {lr:.2e}  {per_step * 1000:.0f} ms/step  {rate:,.0f} tokens/s")
