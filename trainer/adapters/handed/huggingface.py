"""transformers.Trainer and its derivatives (TRL, sentence-transformers, run_clm.py of any version).

`train()` gets the newest whole `checkpoint-N` of its own output folder, unless the script gives it one. This also
serves scripts without an option to resume, and scripts that never use theirs (TRL's).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os.path
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from ...rundir.codes import Doing
from ..protocol import Handed, Orders

NAME = "huggingface"


def _hook(module: ModuleType, orders: Orders) -> None:
    trainer: Any = module.Trainer
    original = trainer.train
    numbers = itertools.count(1)

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        number = next(numbers)
        orders.uses(NAME)
        orders.fact(_fact(number), _folder(self))
        # Older versions say False for none.
        if not resume_from_checkpoint:
            resume_from_checkpoint = offered(self, number, orders.offers, orders.facts) or resume_from_checkpoint
        return original(self, resume_from_checkpoint, *args, **kwargs)

    trainer.train = train
    _tell(module, orders)


def _tell(module: ModuleType, orders: Orders) -> None:
    """The Trainer's own state tells people how many steps there are, and its log tells them the loss."""
    handler, trainer = getattr(module, "CallbackHandler", None), module.Trainer
    began, logged, evaluate = (
        getattr(*each, None) for each in ((handler, "on_train_begin"), (handler, "on_log"), (trainer, "evaluate"))
    )
    if handler is None or began is None or logged is None or evaluate is None:
        return

    @functools.wraps(began)
    def on_train_begin(self: Any, args: Any, state: Any, *rest: Any, **more: Any) -> Any:
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            orders.total(int(state.max_steps))
        return began(self, args, state, *rest, **more)

    @functools.wraps(logged)
    def on_log(self: Any, args: Any, state: Any, control: Any, logs: Any, *rest: Any, **more: Any) -> Any:
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            orders.loss(float(logs["loss"]))
        return logged(self, args, state, control, logs, *rest, **more)

    @functools.wraps(evaluate)
    def evaluated(*args: Any, **more: Any) -> Any:
        orders.doing(Doing.EVALUATING)
        try:
            return evaluate(*args, **more)
        finally:
            orders.doing(Doing.NONE)

    handler.on_train_begin, handler.on_log, trainer.evaluate = on_train_begin, on_log, evaluated


def offered(trainer: Any, number: int, offers: Sequence[str], facts: Mapping[str, str]) -> str | None:
    """The offer that this very trainer has saved: a script may have several trainers, each with its own folder. The
    name of a folder may have the time in it. So it may also be one of the trainer that was the script's `number`-th to
    train before, and if there was only one trainer, any."""
    within = {path: os.path.dirname(os.path.realpath(path)) for path in offers}  # noqa: PTH120 (names, to compare)
    for place in (_folder(trainer), facts.get(_fact(number))):
        if found := next((path for path in offers if within[path] == place), None):
            return found
    only = _fact(1) in facts and _fact(2) not in facts
    return next(iter(offers), None) if only and number == 1 else None


def _fact(number: int) -> str:
    return f"{NAME}.{number}"


def _folder(trainer: Any) -> str:
    folder = getattr(getattr(trainer, "args", None), "output_dir", None)
    return os.path.realpath(folder) if isinstance(folder, str) else ""


HUGGING_FACE = Handed(NAME, "Trainer.train(resume_from_checkpoint=", {"transformers.trainer": _hook})
