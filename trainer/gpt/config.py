"""The flags of `python -m trainer` as one frozen value. Loads no torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn

from ..errors import UsageError
from ..rundir.nearest import did_you_mean

Every = int | Literal["auto"] | None


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One field for each flag. Every checkpoint contains it."""

    steps: int = 200
    data: str = "stdlib"
    batch_size: int = 16
    block_size: int = 128
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    dropout: float = 0.0
    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup: int = 10
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    amp: str = "off"
    seed: int = 0
    checkpoint_every: Every = "auto"
    snapshot_every: Every = "auto"
    keep: int = 3
    spike: float | None = None
    resume: str | None = None
    log_every: int = 10
    device: str = "auto"
    threads: int = 0
    out: str = "out"
    checkpoint_dir: str | None = None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        unknown = message.removeprefix("unrecognized arguments: ").partition("=")[0].partition(" ")[0]
        hint = did_you_mean(unknown, known if unknown.startswith("--") else (), "see python -m trainer --help")
        raise UsageError(f"{message}; {hint}")


def _number(low: float, kind: type[int] | type[float]) -> type[int]:
    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low:g} up")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse  # type: ignore[return-value]


def _every(text: str) -> Every:
    if text in ("auto", "off"):
        return "auto" if text == "auto" else None
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps, auto or off")
    return int(text)


def _spike(text: str) -> float | None:
    if text == "off":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor off")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0 <= p < 1")
    return value


def _parser() -> argparse.ArgumentParser:
    count, size, real = _number(0, int), _number(1, int), _number(0.0, float)
    parser = _Parser(
        prog="python -m trainer",
        description="Trains a GPT over bytes. Alone, under torchrun, or under supervise.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--steps", type=count, metavar="N", help="optimizer steps in all, those before a resume included")
    add("--data", metavar="stdlib|random|PATH", help="Python's own sources, noise, or a file or folder")
    add("--batch-size", type=size, metavar="N", help="sequences a step, over all ranks")
    add("--block-size", type=size, metavar="N", help="bytes in a sequence")
    add("--n-layer", type=size, metavar="N", help="blocks")
    add("--n-head", type=size, metavar="N", help="attention heads; divides --n-embd")
    add("--n-embd", type=size, metavar="N", help="width")
    add("--dropout", type=_fraction, metavar="P", help="probability of dropping an activation")
    add("--lr", type=real, metavar="X", help="learning rate after the warm-up")
    add("--min-lr", type=real, metavar="X", help="learning rate that the cosine ends at")
    add("--warmup", type=count, metavar="N", help="steps of linear warm-up")
    add("--weight-decay", type=real, metavar="X", help="AdamW's, on matrices")
    add("--grad-clip", type=real, metavar="X", help="largest norm of the gradient; 0 for no limit")
    add("--amp", choices=("off", "bf16", "fp16"), help="autocast; fp16 with a GradScaler")
    add("--seed", type=count, metavar="N", help="of weights, data order and dropout")
    add("--checkpoint-every", type=_every, metavar="N|auto|off", help="steps; off: only when stopped and at the end")
    add("--snapshot-every", type=_every, metavar="N|auto|off", help="steps; under a supervisor, in memory")
    add("--keep", type=_number(2, int), metavar="N", help="checkpoints kept")
    add(
        "--spike",
        type=_spike,
        metavar="X|off",
        help="median deviations above the last losses' median that are too much",
    )
    add(
        "--resume",
        choices=("auto", "never", "must"),
        help="go on from a checkpoint; none given: as supervised, else auto",
    )
    add("--log-every", type=size, metavar="N", help="steps between lines of log")
    add("--device", choices=("auto", "cpu", "cuda"), help="auto: cuda if there is one")
    add("--threads", type=count, metavar="N", help="CPU threads a rank; 0: the cores over the ranks of this machine")
    add("--out", metavar="DIR", help="for metrics.jsonl and checkpoints/ where no supervisor gives a folder")
    add("--checkpoint-dir", metavar="DIR", help="for the checkpoints alone")
    parser.set_defaults(**asdict(TrainConfig()))
    return parser


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The config that the flags ask for. UsageError says what is wrong with them."""
    config = TrainConfig(**vars(_parser().parse_args(arguments)))
    if config.n_embd % config.n_head:
        raise UsageError(f"--n-embd {config.n_embd} does not divide by --n-head {config.n_head}")
    if config.data not in ("stdlib", "random") and not Path(config.data).exists():
        raise UsageError(f"--data {config.data}: no such file or folder; give stdlib, random, or a path")
    return config


@dataclass(frozen=True, slots=True)
class Place:
    """The place of this process among the ranks, as torchrun tells it."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1


def place() -> Place:
    """The place of this process: alone, unless the environment says otherwise."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    rank, local, world, local_world = (int(os.environ.get(name, "0")) for name in names)
    return Place(rank, local, max(1, world), max(1, local_world))
