"""The training loop, for one process and for DDP alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoint.checkpointer import Checkpointer
from ..checkpoint.memory.tier import Wish
from ..checkpoint.state import rng
from ..checkpoint.state.marks import PerRank
from ..errors import UsageError
from ..rank.progress import progress
from ..rundir.codes import Phase
from ..rundir.environment import supervised
from .config import Place, TrainConfig
from .data import Batches, load_bytes
from .log import Log
from .metrics import Metrics
from .model import GPT, GPTConfig
from .parallel import agree, device_of, join, parallel, set_threads
from .schedule import learning_rate

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a training run: model, optimizer, scaler, data."""

    device: torch.device
    model: GPT
    forward: nn.Module
    """The model itself, or DDP around it."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    autocast: AbstractContextManager[object]
    batches: Batches


def build(config: TrainConfig, place: Place) -> Parts:
    """All parts as they are before step 0. If there are several ranks, their process group exists."""
    set_threads(config, place)
    device = device_of(config, place)
    data = load_bytes(config.data, config.seed)
    batches = Batches(data, config.batch_size, config.block_size, config.seed, place.rank, place.world_size)
    if place.world_size > 1:
        join(device)
    rng.seed(config.seed)
    model = GPT(GPTConfig(config.block_size, config.n_layer, config.n_head, config.n_embd, config.dropout)).to(device)
    forward = parallel(model, device) if place.world_size > 1 else model
    # Each rank's dropout must be different. A restore replaces this state.
    rng.seed(config.seed, place.rank, 0)
    return Parts(
        device=device,
        model=model,
        forward=forward,
        optimizer=torch.optim.AdamW(model.parameter_groups(config.weight_decay), lr=config.lr, betas=(0.9, 0.95)),
        scaler=torch.amp.GradScaler(device.type, enabled=config.amp == "fp16"),
        autocast=nullcontext() if config.amp == "off" else torch.autocast(device.type, dtype=_AMP[config.amp]),
        batches=batches,
    )


def _metrics(root: Path) -> Metrics:
    try:
        return Metrics(root / "metrics.jsonl")
    except OSError as error:
        raise UsageError(f"--out {root}: {error.strerror}; give a folder that can be written to") from None


def _of_rank_0(values: list[str], rank: int, world_size: int) -> str:
    """Only rank 0 writes metrics."""
    return values[0] if rank == 0 else ""


def _checkpointer(config: TrainConfig, place: Place, parts: Parts, root: Path, metrics: list[Metrics]) -> Checkpointer:
    """`metrics` is empty until the restore, and on other ranks than 0."""
    told = asdict(config)

    def pending() -> str:
        return "".join(each.pending for each in metrics)

    def seal() -> None:
        for each in metrics:
            each.sync()

    return Checkpointer(
        model=parts.forward,
        optimizer=parts.optimizer,
        scaler=parts.scaler,
        data=parts.batches,
        extra=lambda: {"config": told, "metrics": PerRank(pending(), _of_rank_0)},
        directory=config.checkpoint_dir or root / "checkpoints",
        every=config.checkpoint_every,
        snapshot_every=config.snapshot_every,
        keep=config.keep,
        resume=config.resume,
        seed=config.seed,
        seal=seal,
        spike=config.spike,
        park=True,
        warm_up=lambda: _warm_up(config, place, parts),
    )


def _warm_up(config: TrainConfig, place: Place, parts: Parts) -> None:
    _backward(config, place, parts, 0, 0, Wish)
    _update(parts)
    parts.optimizer.zero_grad(set_to_none=True)


def _backward(
    config: TrainConfig, place: Place, parts: Parts, number: int, data_step: int, wish: Callable[[], Iterable[bool]]
) -> tuple[float, float, Tensor, list[bool]]:
    """One step of training, up to the optimizer's own. Returns the mean loss, the learning rate, the norm
    of the gradient, and for each flag that `wish` gives whether any rank has it."""
    optimizer, scaler = parts.optimizer, parts.scaler
    tokens, targets = (part.to(parts.device, non_blocking=True) for part in parts.batches(data_step))
    lr = learning_rate(number, config)
    for group in optimizer.param_groups:
        group["lr"] = lr

    with parts.autocast:
        loss = parts.forward(tokens, targets)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parts.model.parameters(), config.grad_clip or float("inf"))

    # The ranks' wishes travel with the loss, so they need no collective of their own. So does the news of a gradient
    # that is not finite, unless the scaler leaves that step out. It comes before the optimizer's step: a rank that dies
    # between that and the commit of its snapshot loses a step.
    told = loss.detach() if scaler.is_enabled() else loss.detach() + 0 * norm
    mean, *flags = agree(told, *wish(), world_size=place.world_size)
    return mean, lr, norm, flags


def _update(parts: Parts) -> None:
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()


def train(config: TrainConfig, place: Place) -> None:
    """`config.steps` steps are done and saved. UsageError, CheckpointError, NotFinite, or SystemExit(75) after a
    request to stop."""
    here = supervised()
    root = here.run.path if here else Path(config.out)
    parts = build(config, place)
    metrics: list[Metrics] = []
    ckpt = _checkpointer(config, place, parts, root, metrics)
    start = ckpt.restore()
    if place.rank == 0:
        metrics.append(_metrics(root))
    for each in metrics:
        if ckpt.resume == "never":
            each.start_over()
        else:
            each.resume_at(start, str(ckpt.extra.get("metrics", "")))
    log = Log(config, start, quiet=place.rank != 0)
    log.say(f"step {start} of {config.steps}, on {place.world_size} x {parts.device}")
    if parts.batches.changed:
        log.say("the data or the seed is not what the checkpoint was trained on: the run goes on with the new")

    progress().told(total=config.steps)
    for number in range(start, config.steps):
        mean, lr, norm, flags = _backward(config, place, parts, number, ckpt.data_step(number), ckpt.wish)
        done, agreed = number + 1, Wish(*flags)
        ckpt.check(done, mean, agreed)
        for each in metrics:
            tokens_seen = done * config.batch_size * config.block_size
            each.write(step=done, loss=mean, lr=lr, grad_norm=norm.item(), tokens=tokens_seen)
        log.step(done, mean, lr)
        _update(parts)
        ckpt.step(done, agreed if done < config.steps else agreed._replace(stop=False))
        parts.optimizer.zero_grad(set_to_none=True)

    progress().phase(Phase.TEARDOWN)
    ckpt.close()
    for each in metrics:
        each.close()
