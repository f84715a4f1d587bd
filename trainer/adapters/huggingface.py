"""transformers.Trainer and its derivatives (TRL, sentence-transformers, run_clm.py of any version).

`train()` gets the newest whole `checkpoint-N` of its own output folder, unless the script gives it one. This also
serves scripts without an option to resume, and scripts that never use theirs (TRL's).
"""

from __future__ import annotations

import functools
import os.path
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from .protocol import Handed, Orders

NAME = "huggingface"


def _hook(module: ModuleType, orders: Orders) -> None:
    trainer: Any = module.Trainer
    original = trainer.train

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        orders.uses(NAME)
        # Older versions say False for none.
        if not resume_from_checkpoint:
            resume_from_checkpoint = offered(self, orders.offers) or resume_from_checkpoint
        return original(self, resume_from_checkpoint, *args, **kwargs)

    trainer.train = train


def offered(trainer: Any, offers: Sequence[str]) -> str | None:
    """The offer that this very trainer has saved: a script may have several trainers, each with its own folder."""
    folder = getattr(getattr(trainer, "args", None), "output_dir", None)
    if not isinstance(folder, str):
        return None
    here = os.path.realpath(folder)
    return next((path for path in offers if os.path.split(os.path.realpath(path))[0] == here), None)


HUGGING_FACE = Handed(NAME, "Trainer.train(resume_from_checkpoint=", {"transformers.trainer": _hook})
