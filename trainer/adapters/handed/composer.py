"""Composer's Trainer (llm-foundry's too): it gets the newest file of the run as `load_path`, unless the script says
what to load. Its own `autoresume` wants a name of the run, and looks in that run's folder alone."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from ..protocol import Handed, Orders

NAME = "composer"


def _hook(module: ModuleType, orders: Orders) -> None:
    trainer: Any = module.Trainer
    make = trainer.__init__
    made = False

    @functools.wraps(make)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal made
        orders.uses(NAME)
        # The first trainer of a script is the one that was saved.
        if orders.offers and not made and kwargs.get("load_path") is None and not kwargs.get("autoresume"):
            kwargs["load_path"] = orders.offers[0]
        made = True
        make(self, *args, **kwargs)

    trainer.__init__ = init


# Its files have the rank in their name. Each rank reads the first one's, unless the state is sharded.
COMPOSER = Handed(NAME, "Trainer(load_path=", {"composer.trainer.trainer": _hook}, files=r".*rank0.*")
