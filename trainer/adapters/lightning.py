"""Lightning's Trainer, under both of its names. `fit()` gets the newest whole checkpoint of the run, as an absolute
path.

It does not get "last": that looks in the folder of this launch (version_N), finds nothing there, and begins anew with a
warning.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from .program import Program
from .protocol import Case, Orders, Plan

NAME = "lightning"


class Lightning:
    name = NAME

    def knows(self, program: Program) -> bool:
        return NAME in program.uses

    def plan(self, case: Case) -> Plan | None:
        found = [each for each in case.checkpoints if each.kind == NAME]
        if not found:
            return None
        say = f"Trainer.fit(ckpt_path={found[0].path})"
        return Plan(say, offers=tuple(each.path for each in found), checkpoint=found[0])

    @property
    def hooks(self) -> dict[str, Any]:
        return {
            "lightning.pytorch.trainer.trainer": _hook_trainer,
            "pytorch_lightning.trainer.trainer": _hook_trainer,
        }


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
