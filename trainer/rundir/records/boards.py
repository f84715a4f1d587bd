"""What programs log for TensorBoard and W&B, and what of a run they log with it."""

from __future__ import annotations

import re

import msgspec

_OTHER = frozenset("val valid validation eval evaluation test dev".split())
_FILLING = frozenset("train training loss total step batch running".split())


def is_training_loss(tag: str) -> bool:
    """Whether a number of that name is the loss of the training: `loss`, `train/loss`, `Loss/train`, `train_loss_step`.
    A part of it (`loss_box`), and the loss of an evaluation, are not."""
    words = set(re.findall("[a-z0-9]+", tag.lower()))
    return "loss" in words and not words & _OTHER and words <= _FILLING


class Board(msgspec.Struct, frozen=True):
    """A line of RUN/trackers/boards: a folder that the program writes for TensorBoard."""

    path: str


class Numbers(msgspec.Struct, frozen=True):
    """RUN/numbers.json: how the run fares, for the program's own curves (--log-restarts)."""

    restarts: int = 0
    lost_steps: int = 0
    goodput: float = 0.0

    def series(self) -> dict[str, float]:
        """By the names that they have among the program's own."""
        return {f"supervise/{name}": float(value) for name, value in msgspec.structs.asdict(self).items()}
