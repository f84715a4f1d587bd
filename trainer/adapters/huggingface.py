"""transformers.Trainer and its derivatives (TRL, sentence-transformers, run_clm.py of any version).

`train()` gets the newest whole `checkpoint-N` of its own output folder, unless the script gives it one. This also
serves scripts without an option to resume, and scripts that never use theirs (TRL's).
"""

from __future__ import annotations

import functools
import os.path
from types import ModuleType
from typing import Any

from .program import Program
from .protocol import Case, Orders, Plan

NAME = "huggingface"


class HuggingFace:
    name = NAME

    def knows(self, program: Program) -> bool:
        return NAME in program.uses

    def plan(self, case: Case) -> Plan | None:
        found = [each for each in case.checkpoints if each.kind == NAME]
        if not found:
            return None
        say = f"Trainer.train(resume_from_checkpoint={found[0].path})"
        return Plan(say, offers=tuple(each.path for each in found), checkpoint=found[0])

    @property
    def hooks(self) -> dict[str, Any]:
        return {"transformers.trainer": _hook}


def _hook(module: ModuleType, orders: Orders) -> None:
    trainer: Any = module.Trainer
    original = trainer.train

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        orders.uses(NAME)
        # Older versions say False for none.
        if not resume_from_checkpoint:
            resume_from_checkpoint = _offered(self, orders) or resume_from_checkpoint
        return original(self, resume_from_checkpoint, *args, **kwargs)

    trainer.train = train


def _offered(trainer: Any, orders: Orders) -> str | None:
    """The offer that this very trainer has saved: a script may have several trainers, each with its own folder."""
    folder = getattr(getattr(trainer, "args", None), "output_dir", None)
    if not isinstance(folder, str):
        return None
    here = os.path.realpath(folder)
    return next((path for path in orders.offers if os.path.split(os.path.realpath(path))[0] == here), None)
