"""transformers.Trainer and its derivatives (TRL, sentence-transformers, run_clm.py of any version).

`train()` gets the newest whole `checkpoint-N` of its own output folder, unless the script gives it one. This also
serves scripts without an option to resume, and scripts that never use theirs (TRL's).
"""

from __future__ import annotations

import contextlib
import functools
import os.path
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from ...rundir.codes import Doing
from ..protocol import Handed, Orders
from .trainings import TRIAL, Begun, Earlier, Trainings, doubt, fact, of

NAME = "huggingface"
_SEARCH = f"{NAME}.search"
"""The fact that the program has searched."""


def _hook(module: ModuleType, orders: Orders) -> None:
    trainer: Any = module.Trainer
    original = trainer.train
    trainings = Trainings()
    searched = False

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        nonlocal searched
        orders.uses(NAME)
        if is_trial(args, kwargs):
            orders.begins(TRIAL)
            if _SEARCH in orders.facts and not searched:
                orders.warn("the search for hyperparameters begins anew: a study without a storage draws others now")
            searched = True
            orders.fact(_SEARCH, "seen")
            try:
                return original(self, resume_from_checkpoint, *args, **kwargs)
            finally:
                orders.begins(0)
        begun = offered(self, trainings, known(orders.offers, orders.trainings, orders.facts))
        orders.begins(begun.number)
        orders.fact(fact(NAME, begun.number), _folder(self))
        # Older versions say False for none.
        if not resume_from_checkpoint:
            resume_from_checkpoint = begun.checkpoint or resume_from_checkpoint
            if begun.doubtful:
                orders.warn(doubt(f"train() number {begun.number}", begun.doubtful))
        return original(self, resume_from_checkpoint, *args, **kwargs)

    trainer.train = train
    _tell(module, orders)


def is_trial(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether train(resume_from_checkpoint, *args, **kwargs) is a trial of hyperparameter_search(). After a restart the
    one with its number has other hyperparameters."""
    return (args[0] if args else kwargs.get("trial")) is not None


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


def known(offers: Sequence[str], trainings: Mapping[str, int], facts: Mapping[str, str]) -> Earlier:
    return Earlier(offers, trainings, of(facts, NAME))


def offered(trainer: Any, trainings: Trainings, earlier: Earlier) -> Begun:
    """The trainer begins a training: the next one of `trainings`. It gets the offer that this very training has saved:
    a script may have several, with a folder for each or with one for all. The name of a folder may have the time in it.
    So it may also be in the folder that the training of that number had, and if there was only one training, in any."""
    begun = trainings.begin([_folder(trainer)], earlier)
    only = begun.number == 1 and 1 in earlier.folders and not earlier.several
    if begun.checkpoint is None and only:
        return Begun(1, next(iter(earlier.offers), None))
    return begun


def _folder(trainer: Any) -> str:
    folder = getattr(getattr(trainer, "args", None), "output_dir", None)
    return os.path.realpath(folder) if isinstance(folder, str) else ""


HUGGING_FACE = Handed(
    NAME, "Trainer.train(resume_from_checkpoint=", {"transformers.trainer": _hook}, only_resumable=True
)
