"""Gradients that wait for an optimizer's step. A checkpoint does not hold them, so a save in between loses them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from . import several


class Gradients:
    """Watches the optimizers in `parts`. A GradScaler in them leaves out an optimizer's step now and then."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        optimizers = several.values("optimizer", parts)
        self._optimizers = [one for one in optimizers if isinstance(one, torch.optim.Optimizer)]
        scalers = several.values("scaler", parts)
        self._scalers = [one for one in scalers if getattr(one, "is_enabled", bool)()]
        self._scales: list[float] = []
        self._stepped = self._told = False
        if not self._optimizers:
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
        if stepped or self._told or not saves or not self._optimizers:
            return None
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        if all(param.grad is None for group in groups for param in group["params"]) or self._was_left_out():
            return None
        self._told = True
        return (
            "gradients are pending at this save, and a checkpoint does not hold them, so a resume would lose them; "
            "call step() and save() of the Checkpointer only after optimizer.step(), not after each micro-batch"
        )

    def _was_left_out(self) -> bool:
        """Whether a scaler may have left an optimizer's step out. Each time it does, its scale is another."""
        before, self._scales = self._scales, [float(scaler.get_scale()) for scaler in self._scalers]
        return before != self._scales
