"""For Hugging Face's Trainer, and those that derive from it (TRL, sentence-transformers):

    from supervise.callbacks.huggingface import SuperviseCallback
    trainer = Trainer(…, callbacks=[SuperviseCallback()])

Under a supervisor each step is a snapshot in memory, and a restart goes on from it: weights, optimizer, scheduler,
scaler, generators, the Trainer's own state, its place in the data. For this the Trainer is told to resume from a folder
that has nothing but its trainer_state.json. What it would load from the other files is put back by a Keeper.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..adapters.handed.huggingface import NAME, is_trial, known, offered
from ..adapters.handed.trainings import TRIAL, Begun, Trainings
from ..checkpoint.options import Every
from ..errors import UsageError
from ..rundir.codes import ExitCode
from ..rundir.environment import supervised
from ..rundir.records.told import told
from .data import watch
from .keeper import Bystander, Keeper
from .replacing import replace

_transformers: Any = importlib.import_module("transformers")
_STATE = "trainer_state.json"
_FILES = ("_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state")
"""The Trainer's methods that read the files of a checkpoint."""
_CALLBACKS = "_load_callback_state"
"""The one that gives callbacks what trainer_state.json has of them."""


class SuperviseCallback(_transformers.TrainerCallback):  # type: ignore[misc]
    """Under a supervisor each step is a snapshot. On SIGTERM all ranks save the same step, also by the Trainer, and
    exit with 75. A loss that is not finite ends the attempt before that step is saved, and the run goes back. Without a
    supervisor nothing is done.

    The options are Checkpointer's. With `judge_loss=False` no loss is judged. Only the first train() of a program has
    snapshots. The others have the Trainer's own checkpoints."""

    def __init__(
        self, every: Every = "auto", snapshot_every: Every = "auto", keep: int = 3, judge_loss: bool = True
    ) -> None:
        self._options = {"every": every, "snapshot_every": snapshot_every, "keep": keep}
        self._judges = judge_loss
        self._keeper: Keeper | Bystander | None = None
        self._trainer: Any = None
        self._losses: list[torch.Tensor] = []
        self._log = _Log()
        self._leaves = False
        self._ended = False
        """Whether training is over."""
        self._between = False
        """Whether the run goes on from the end of an epoch, and the next one had not begun."""

    def train(self, trainer: Any, train: Callable[[Any], Any], resume: Any, number: int) -> Any:
        """Calls `train(resume_from_checkpoint)`, so that it goes on from the newest state of all. `resume` is the
        Trainer's own. `number`: of this training, of all that the program calls; it may have left some out. TRIAL:
        of none."""
        global _runs
        self._trainer, self._leaves, self._ended, self._log = trainer, False, False, _Log()
        if number == TRIAL:
            self._keeper = Bystander("this is a trial of a search", "a restart begins the search anew")
        elif why := _sharded(trainer) or ("this is not the program's first train()" if _runs or number > 1 else ""):
            self._keeper = Bystander(why)
        else:
            self._keeper = Keeper(**self._options, extra=self._extra)
        _runs += 1
        with tempfile.TemporaryDirectory(prefix="supervise-") as folder:
            undo = [
                replace(trainer, "training_step", self._noting(trainer.training_step)),
                replace(trainer, "get_train_dataloader", self._watching(trainer.get_train_dataloader)),
            ]
            if (path := self._newer(resume, Path(folder))) is not None:
                resume = path
                undo += [replace(trainer, name, self._reading(getattr(trainer, name), path)) for name in _FILES]
                if hasattr(trainer, _CALLBACKS):
                    undo.append(replace(trainer, _CALLBACKS, self._recalling(getattr(trainer, _CALLBACKS))))
            try:
                return train(resume)
            finally:
                for put_back in undo:
                    put_back()

    def _newer(self, resume: Any, folder: Path) -> str | None:
        """`folder`, prepared for the Trainer to resume from, if our state is the newest."""
        keeper = self._keeper
        if not isinstance(keeper, Keeper) or (step := keeper.look(not _has_fsdp2(self._trainer))) is None:
            return None
        if _step_of(self._trainer, resume) > step:
            keeper.forget()
            return None
        found = keeper.found["extra"]["huggingface"]
        state = {**found["state"], "log_history": json.loads(found["log"])}
        self._between = found["over"] and float(state["epoch"]).is_integer()
        # By this number the Trainer finds its place in the data. One that had ended would make a step more.
        self._ended = found["ended"] == self._horizon()
        state["global_step"] = sys.maxsize**2 if self._ended else keeper.data_found()
        (folder / _STATE).write_text(json.dumps(state))
        return str(folder)

    def _reading(self, method: Callable[..., Any], path: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def read(checkpoint: Any, *args: Any, **kwargs: Any) -> Any:
            if checkpoint != path:
                return method(checkpoint, *args, **kwargs)
            if method.__name__ == "_load_rng_state" and isinstance(self._keeper, Keeper):
                # At the first batch. Some versions ask again in later epochs.
                self._keeper.generators()
            return None

        return read

    def _recalling(self, method: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(method)
        def load() -> None:
            # It does nothing unless restore_callback_states_from_checkpoint is set. Then it makes new callbacks.
            method()
            _recall(self._trainer.callback_handler.callbacks, self._trainer.state.stateful_callbacks)

        return load

    def _watching(self, method: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(method)
        def get_train_dataloader() -> Any:
            loader = method()
            if isinstance(keeper := self._keeper, Keeper):
                watched = watch(loader, self._trainer.args.gradient_accumulation_steps)
                if watched is not None and not self._between:
                    # The Trainer itself leaves out the batches that were trained on.
                    watched.go_on(keeper.data(), keeper.generators)
                keeper.watches(watched)
            return loader

        return get_train_dataloader

    def _noting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = method(*args, **kwargs)
            if self._judges and isinstance(loss, torch.Tensor):
                self._losses.append(loss.detach().reshape(()))
            return loss

        return training_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        keeper, trainer = self._of_this(), self._trainer
        if not isinstance(keeper, Keeper):
            return
        scaler = getattr(trainer.accelerator, "scaler", None)
        state.global_step = keeper.begin(
            start=state.global_step,
            model=trainer.model_wrapped,
            optimizer=_bare(trainer.optimizer),
            scheduler=_bare(trainer.lr_scheduler),
            scaler=scaler,
        )
        # The Trainer divides by the steps since then. It has set the step of the data: later, if data is skipped.
        trainer._globalstep_last_logged = trainer._initial_global_step = state.global_step
        if self._ended:
            keeper.generators()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Only now, because by now the step before is logged, evaluated and saved, if that was due.
        if (keeper := self._of_this()) is not None:
            keeper.keep()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if (keeper := self._of_this()) is None:
            return control
        loss = torch.stack(self._losses).sum().item() if self._losses else None
        self._losses.clear()
        if getattr(self._trainer.accelerator, "optimizer_step_was_skipped", False):
            loss = None
        if keeper.made(state.global_step, loss):
            self._leaves = control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._leaves:
            raise SystemExit(ExitCode.PREEMPTED)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (keeper := self._of_this()) is not None:
            self._ended = True
            keeper.close()
            self._keeper = None

    def _of_this(self) -> Keeper | Bystander | None:
        if self._trainer is None and supervised() is not None:
            raise UsageError("SuperviseCallback is for transformers.Trainer: nothing has called its train()")
        return self._keeper

    def _extra(self) -> dict[str, Any]:
        trainer = self._trainer
        state = dataclasses.asdict(dataclasses.replace(trainer.state, log_history=[]))
        callbacks = [*trainer.callback_handler.callbacks, trainer.control]
        told: dict[str, Any] = {}
        for callback in callbacks:
            if isinstance(callback, _transformers.trainer_callback.ExportableState):
                # In the form of _save_checkpoint: one of a kind is a dict, several are a list.
                name, known = type(callback).__name__, told.get(type(callback).__name__)
                before = known if isinstance(known, list) else [known]
                told[name] = callback.state() if known is None else [*before, callback.state()]
        state["stateful_callbacks"] = told
        over = isinstance(self._keeper, Keeper) and self._keeper.stopping
        log, ended = self._log.read(trainer.state.log_history), self._horizon() if self._ended else []
        return {"huggingface": {"state": state, "over": over, "ended": ended, "log": log}}

    def _horizon(self) -> list[float]:
        return [self._trainer.args.max_steps, self._trainer.args.num_train_epochs]


def _recall(callbacks: list[Any], told: dict[str, Any]) -> None:
    """The callbacks have the attributes that `told` has of their class, in the form of _extra(). What they were made
    with stays: that is the program's."""
    for name, states in told.items():
        alike = [each for each in callbacks if type(each).__name__ == name]
        for callback, state in zip(alike, states if isinstance(states, list) else [states], strict=False):
            for attribute, value in state.get("attributes", {}).items():
                setattr(callback, attribute, value)


class _Log:
    """A growing list as JSON. Each entry is turned into text once, not at every step."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._whole = "[]"

    def read(self, entries: list[Any]) -> str:
        if len(entries) < len(self._texts):
            self._texts = []
        if len(entries) > len(self._texts):
            self._texts += [json.dumps(entry) for entry in entries[len(self._texts) :]]
            self._whole = f"[{','.join(self._texts)}]"
        return self._whole


_runs = 0
"""The number of calls of train() in this process."""


def _step_of(trainer: Any, resume: Any) -> int:
    """The step of the Trainer's own checkpoint that `resume` stands for; -1 if it is none."""
    if resume is True:
        resume = _transformers.trainer_utils.get_last_checkpoint(trainer.args.output_dir)
    try:
        return int(json.loads((Path(resume) / _STATE).read_bytes())["global_step"]) if resume else -1
    except (OSError, ValueError, KeyError, TypeError):
        # If it is needed, the Trainer will say what is wrong with it.
        return -1


def _sharded(trainer: Any) -> str:
    """The reason why a rank has a part of the state only, or ""."""
    kinds = {"is_deepspeed_enabled": "DeepSpeed", "is_fsdp_enabled": "FSDP1", "is_tp_enabled": "tensor parallelism"}
    found = [what for name, what in kinds.items() if getattr(trainer, name, False)]
    return f"{found[0]} shards the state" if found and not _has_fsdp2(trainer) else ""


def _has_fsdp2(trainer: Any) -> bool:
    """Whether a rank has DTensors."""
    return bool(getattr(trainer.accelerator, "is_fsdp2", False)) and not getattr(trainer, "is_tp_enabled", False)


def _bare(part: Any) -> Any:
    """`part` without accelerate's wrapper."""
    inner = {"AcceleratedOptimizer": "optimizer", "AcceleratedScheduler": "scheduler"}.get(type(part).__name__)
    return getattr(part, inner) if inner else part


def _hook() -> None:
    """Under a supervisor Trainer.train asks the callback, if there is one."""
    trainer = _transformers.Trainer
    original = trainer.train
    trainings = Trainings()

    @functools.wraps(original)
    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        # An adapter may have its hook below this one, and hand over its offer only then.
        orders = told(os.environ)
        offers = orders.offers if orders.adapter == NAME else ()
        begun = Begun(TRIAL)
        if not is_trial(args, kwargs):
            begun = offered(self, trainings, known(offers, orders.trainings, orders.facts))
        ours = [each for each in self.callback_handler.callbacks if isinstance(each, SuperviseCallback)]
        if not ours or supervised() is None:
            return original(self, resume_from_checkpoint, *args, **kwargs)
        resume = resume_from_checkpoint or begun.checkpoint
        return ours[0].train(self, lambda resume: original(self, resume, *args, **kwargs), resume, begun.number)

    trainer.train = train


_hook()
