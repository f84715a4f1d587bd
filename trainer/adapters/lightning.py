"""Lightning's Trainer, under both of its names. `fit()` gets the newest whole checkpoint of the run, as an absolute
path.

It does not get "last": that looks in the folder of this launch (version_N), finds nothing there, and begins anew with a
warning.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from .protocol import Handed, Orders

NAME = "lightning"


def _hook_trainer(module: ModuleType, orders: Orders) -> None:
    trainer: Any = module.Trainer
    original = trainer.fit
    given: list[object] = []

    @functools.wraps(original)
    def fit(
        self: Any,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        orders.uses(NAME)
        # The first trainer that fits is the one that was saved. A second one in the same script is another training.
        if ckpt_path is None and orders.offers and not given:
            ckpt_path = orders.offers[0]
        given.append(self)
        return original(self, model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, *args, **kwargs)

    trainer.fit = fit


LIGHTNING = Handed(
    NAME,
    "Trainer.fit(ckpt_path=",
    {"lightning.pytorch.trainer.trainer": _hook_trainer, "pytorch_lightning.trainer.trainer": _hook_trainer},
)
