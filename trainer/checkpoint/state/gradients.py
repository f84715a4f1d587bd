"""Gradients that wait for an optimizer's step. A checkpoint does not hold them, so a save in between loses them."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook


class Gradients:
    """Watches `optimizer`. `scaler`: a GradScaler, which leaves out an optimizer's step now and then."""

    def __init__(self, optimizer: Any, scaler: Any) -> None:
        self._optimizer = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
        self._scaler = scaler if scaler is not None and getattr(scaler, "is_enabled", bool)() else None
        self._scale: float | None = None
        self._stepped = self._told = False
        if self._optimizer is None:
            return
        itself = weakref.ref(self)

        def after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            if (gradients := itself()) is not None:
                gradients._stepped = True

        # Of every optimizer: the given one may be a framework's, around another.
        hook = register_optimizer_step_post_hook(after_step)
        weakref.finalize(self, hook.remove)

    def pending(self, saves: bool) -> str | None:
        """Called once for each finished step. Returns a sentence, once, if gradients wait that a resume from this step
        would lose. `saves`: whether its state is kept."""
        stepped, self._stepped = self._stepped, False
        if stepped or self._told or not saves or self._optimizer is None:
            return None
        groups = self._optimizer.param_groups
        if all(param.grad is None for group in groups for param in group["params"]) or self._was_left_out():
            return None
        self._told = True
        return (
            "gradients are pending at this save, and a checkpoint does not hold them, so a resume would lose them; "
            "call step() and save() of the Checkpointer only after optimizer.step(), not after each micro-batch"
        )

    def _was_left_out(self) -> bool:
        """Whether the scaler may have left the optimizer's step out. Each time it does, its scale is another."""
        if self._scaler is None:
            return False
        before, self._scale = self._scale, float(self._scaler.get_scale())
        return before != self._scale
