"""Ultralytics (YOLO), as read in 8.4: `train()` gets the run's own newest `last.pt` as `resume`. With `resume=True` it
would take the newest one below the current folder, which may be another run's."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from ..protocol import Handed, Orders

NAME = "ultralytics"


def _hook(module: ModuleType, orders: Orders) -> None:
    model: Any = module.Model
    original = model.train
    made = False

    @functools.wraps(original)
    def train(self: Any, trainer: Any = None, **kwargs: Any) -> Any:
        nonlocal made
        orders.uses(NAME)
        # The first training of a script is the one that was saved.
        if orders.offers and not made and not kwargs.get("resume"):
            kwargs["resume"] = orders.offers[0]
        made = True
        return original(self, trainer, **kwargs)

    model.train = train


ULTRALYTICS = Handed(NAME, "YOLO.train(resume=", {"ultralytics.engine.model": _hook}, files=r"last\.pt|epoch\d+\.pt")
