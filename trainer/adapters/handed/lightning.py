"""Lightning's Trainer, under both of its names. `fit()` gets the newest whole checkpoint of the run, as an absolute
path.

It does not get "last": that looks in the folder of this launch (version_N), finds nothing there, and begins anew with a
warning.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os.path
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ...rundir.codes import Doing
from ..protocol import Handed, Orders
from .trainings import Begun, Earlier, Trainings, doubt, fact, of

NAME = "lightning"
_RATE, _SIZE = "LearningRateFinder.on_fit_start", "BatchSizeFinder.on_fit_start"
_LOSS_EVERY = 0.5
"""Seconds."""


def _hook_trainer(module: ModuleType, orders: Orders) -> None:
    trainer: Any = module.Trainer
    original = trainer.fit
    trainings = Trainings()
    # Since 2.6 it refuses a checkpoint with an object of any class among the hyperparameters. An offer is the run's own
    # file, as the journal knows it, so it may have any.
    takes_trust = "weights_only" in inspect.signature(original).parameters

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
        if is_search(self):
            with orders.unseen():
                return original(self, model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, *args, **kwargs)
        orders.uses(NAME)
        earlier = Earlier(orders.offers, orders.trainings, of(orders.facts, NAME))
        begun = trainings.begin(folders := _folders(self), earlier)
        orders.begins(begun.number)
        orders.fact(fact(NAME, begun.number), folders[0] if folders else "")
        searches: list[Any] = []
        if ckpt_path is None and (ckpt_path := _offer(self, begun, earlier, orders)) is not None:
            searches = _finders(self, _RATE)
            if takes_trust and not args and kwargs.get("weights_only") is None and Path(ckpt_path).is_file():
                kwargs["weights_only"] = False
        with _without(self, searches):
            result = original(self, model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, *args, **kwargs)
        trainings.ended(_folders(self))
        return result

    trainer.fit = fit


def _offer(trainer: Any, begun: Begun, earlier: Earlier, orders: Orders) -> str | None:
    """The checkpoint that the training goes on from."""
    found = begun.checkpoint
    if begun.number == 1 and not earlier.several:
        # It is the one that was saved, wherever that was.
        found = next(iter(earlier.offers), None)
    elif begun.doubtful:
        orders.warn(doubt(f"fit() number {begun.number}", begun.doubtful))
    if found is not None and _finders(trainer, _SIZE):
        orders.warn(f"fit() begins anew: after its search BatchSizeFinder has made Lightning forget {found}")
        return None
    return found


def _folders(trainer: Any) -> list[str]:
    """The folders of its ModelCheckpoints, without links. Those that come from its logger are not known yet."""
    given = (getattr(each, "dirpath", None) for each in trainer.checkpoint_callbacks)
    return [os.path.realpath(each) for each in given if isinstance(each, str | os.PathLike)]


def is_search(trainer: Any) -> bool:
    """Whether its fit() is no training, as read in lightning 2.6: a Tuner looks for a learning rate or a size of the
    batches. Then it ends before its training, and what it has changed is put back."""
    return any(getattr(each, "_early_exit", None) is True for each in trainer.callbacks)


def _finders(trainer: Any, kind: str) -> list[Any]:
    """Its callbacks that search as each fit() begins, as read in lightning 2.6. The search forgets the checkpoint whose
    weights were loaded just before: epoch, step and optimizer would begin anew. The rate that was found before is in
    the optimizer's state. A size that was found is nowhere."""
    begins = ((each, getattr(type(each), "on_fit_start", None)) for each in trainer.callbacks)
    return [each for each, method in begins if getattr(method, "__qualname__", "") == kind]


@contextlib.contextmanager
def _without(trainer: Any, callbacks: list[Any]) -> Iterator[None]:
    """In the block, the trainer does not have these callbacks."""
    if callbacks:
        trainer.callbacks = [each for each in trainer.callbacks if each not in callbacks]
    try:
        yield
    finally:
        if callbacks:
            trainer.callbacks = [*callbacks, *trainer.callbacks]


def _hook_calls(module: ModuleType, orders: Orders) -> None:
    """Wraps `_call_callback_hooks`, as read in lightning 2.6: each moment of a training comes through it. Without it
    people see no total and no loss."""
    original = getattr(module, "_call_callback_hooks", None)
    if original is None:
        return
    losses = _Losses(orders)

    @functools.wraps(original)
    def call(trainer: Any, hook: str, *args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(Exception):  # for people only: whatever it is, the training goes on
            if hook == "on_train_batch_end":
                losses.see(args[0])
            elif hook == "on_train_start" and (total := _total(trainer)) is not None:
                orders.total(total)
            elif hook in ("on_validation_start", "on_validation_end"):
                orders.doing(Doing.EVALUATING if hook == "on_validation_start" else Doing.NONE)
        return original(trainer, hook, *args, **kwargs)

    module._call_callback_hooks = call  # type: ignore[attr-defined]


def _total(trainer: Any) -> int | None:
    """The optimizer steps of the whole training. None if nothing bounds it."""
    bounds = [trainer.max_steps] if trainer.max_steps > 0 else []
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs is not None and epochs > 0 and math.isfinite(batches):
        bounds.append(math.ceil(batches / trainer.accumulate_grad_batches) * epochs)
    return min(bounds, default=None)


class _Losses:
    """Tells the loss of a batch, twice a second at most. A loss on a GPU is told once its copy has arrived: nobody
    waits for it."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._due = 0.0
        self._coming: tuple[Any, Any] | None = None

    def see(self, output: Any) -> None:
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _LOSS_EVERY
        loss = output["loss"].detach()
        if loss.device.type == "cpu":
            self._orders.loss(float(loss))
        elif loss.device.type == "cuda":
            if self._coming is not None and self._coming[1].query():
                self._orders.loss(float(self._coming[0]))
                self._coming = None
            if self._coming is None:
                arrived = sys.modules["torch"].cuda.Event()
                self._coming = loss.to("cpu", non_blocking=True), arrived
                arrived.record()


LIGHTNING = Handed(
    NAME,
    "Trainer.fit(ckpt_path=",
    {
        f"{package}.trainer.{module}": hook
        for package in ("lightning.pytorch", "pytorch_lightning")
        for module, hook in (("trainer", _hook_trainer), ("call", _hook_calls))
    },
    only_resumable=True,
)
