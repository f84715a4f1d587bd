"""The learning rate, a pure function of the step: there is no state to restore."""

from __future__ import annotations

import math

from .config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of the update that follows `step` finished ones: linear warm-up, then a cosine down to min_lr."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * min(1.0, done)))
