"""For Lightning's Trainer, under both of its names:

    from supervise.callbacks.lightning import SuperviseCallback
    trainer = Trainer(…, callbacks=[SuperviseCallback()])

Under a supervisor each step is a snapshot in memory, and a restart goes on from it: weights, optimizers, schedulers,
precision, generators, loops, callbacks, the place in the data. The state is taken between two batches, when the step
before is logged, validated and saved. Lightning gets it back in the form of one of its own checkpoints. Its place in
the data is that of the batch sampler; Lightning itself would begin its data anew.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..adapters.handed.lightning import is_search
from ..checkpoint.options import Every
from ..rank.progress import progress
from ..rundir.environment import supervised
from ..rundir.records.told import told
from .data import Watched, watch
from .keeper import Bystander, Keeper
from .replacing import replace
from .several import Several

# A program has one of them, or both and uses the one that it has imported first.
_NAME = next((name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules), "lightning.pytorch")
_lightning: Any = importlib.import_module(_NAME)
_WHOLE = ("SingleDeviceStrategy", "DDPStrategy")
"""Strategies in which every rank has the whole state."""
_SHARDED = ("ModelParallelStrategy",)
"""Those in which it has DTensors (FSDP2, tensor parallelism)."""
_ELSEWHERE = ("state_dict", "optimizer_states", "lr_schedulers")
"""What a checkpoint of Lightning's has, and the parts of ours have already."""


class SuperviseCallback(_lightning.Callback):  # type: ignore[misc]
    """Under a supervisor each step is a snapshot. On SIGTERM all ranks save the same step, also by Lightning if it
    makes checkpoints, and exit with 75. A loss that is not finite ends the attempt before that step is saved, and the
    run goes back. Without a supervisor nothing is done.

    The options are Checkpointer's. With `judge_loss=False` no loss is judged. Only the first fit() of a program has
    snapshots. The others have Lightning's own checkpoints."""

    def __init__(
        self, every: Every = "auto", snapshot_every: Every = "auto", keep: int = 3, judge_loss: bool = True
    ) -> None:
        super().__init__()
        self._options = {"every": every, "snapshot_every": snapshot_every, "keep": keep}
        self._judges = judge_loss
        self._keeper: Keeper | Bystander | None = None
        self._trainer: Any = None
        self._losses: list[torch.Tensor] = []
        self._shards = False
        self._made = 0
        self._ended = False
        self._undo: list[Callable[[], None]] = []
        self._resumes = False
        """Whether the next batch is the first after a resume from our state."""
        self._watched: tuple[int, Watched | None] | None = None
        """The epoch for which a loader was made last, and its sampler."""
        self._fresh = False
        """Whether that batch is the first of an epoch, too."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        global _fits
        if stage != "fit" or supervised() is None or is_search(trainer):
            return
        self._trainer, self._made, self._resumes, self._watched = trainer, 0, False, None
        kind = type(trainer.strategy).__name__
        why = "" if kind in (*_WHOLE, *_SHARDED) else f"{kind} may shard the state"
        # It may be the first one in this process, and not of the program, which has left out what is done.
        first = not _fits and progress().training <= 1
        if why := why or ("" if first else "this is not the program's first fit()"):
            self._keeper = Bystander(why)
        else:
            keeper = self._keeper = Keeper(**self._options, extra=self._extra)
            connector, strategy = trainer._checkpoint_connector, trainer.strategy
            self._shards = kind in _SHARDED
            resume = functools.partial(self._resume, connector.resume_start, keeper.look(whole=not self._shards))
            watching = functools.partial(self._watching, strategy.process_dataloader)
            self._undo = [
                replace(connector, "resume_start", resume),
                replace(strategy, "process_dataloader", watching),
            ]
        _fits += 1

    def _resume(self, original: Any, step: int | None, path: Any = None, *args: Any, **kwargs: Any) -> None:
        """In place of the connector's: what Lightning resumes from is the newer one of its own and ours of `step`."""
        # A validate() or test() after the training loads what it is told to.
        self._undo.pop(0)()
        keeper, connector, orders = self._keeper, self._trainer._checkpoint_connector, told(os.environ)
        assert isinstance(keeper, Keeper)
        known = path and os.path.realpath(path) == os.path.realpath(orders.saved) and orders.step >= 0
        if step is None or not known or orders.step > step:
            original(path, *args, **kwargs)
            if step is None or connector._loaded_checkpoint.get("global_step", -1) > step:
                keeper.forget()
                return
        found = keeper.found
        optimizers = found.get("optimizer", {})
        if self._shards:
            # The keeper puts them back, when they are made. Before its first batch nobody else needs them.
            for name in ("load_model_state_dict", "load_optimizer_state_dict"):
                self._undo.append(replace(self._trainer.strategy, name, lambda *args, **kwargs: None))
        connector._loaded_checkpoint = {
            **found["extra"]["lightning"],
            "state_dict": found.get("model", {}),
            "optimizer_states": optimizers.get("each", [optimizers]),
            "lr_schedulers": found.get("scheduler", {}).get("each", []),
        }
        connector._ckpt_path = None
        self._resumes = True
        # One that was stopped early would train on.
        self._trainer.should_stop = found["extra"]["ended"] == self._horizon()

    def _watching(self, original: Any, loader: Any) -> Any:
        """In place of the strategy's: notes the place in the data of the training's loader."""
        loader, trainer, keeper = original(loader), self._trainer, self._keeper
        # A loader that keeps its own place is in Lightning's own state.
        if not trainer.training or not isinstance(keeper, Keeper) or hasattr(loader, "state_dict"):
            return loader
        watched = watch(loader, trainer.accumulate_grad_batches, lambda: int(trainer.current_epoch))
        before, self._watched = self._watched, (int(trainer.current_epoch), watched)
        if before is not None and before[0] == trainer.current_epoch and before[1] is not watched:
            # Several loaders at once. How far each of them is, only Lightning's mode of combining them knows.
            if before[1] is not None:
                before[1].go_on(None, lambda: None)
            watched = None
        if watched is not None and self._resumes:
            self._place(watched, keeper)
        keeper.watches(watched)
        return loader

    def _place(self, watched: Watched, keeper: Keeper) -> None:
        loops = keeper.found["extra"]["lightning"]["loops"]["fit_loop"]
        state, done = keeper.data(), loops["epoch_loop.batch_progress"]["current"]["completed"]
        self._fresh = not done and (state is None or state["mark"] != loops["epoch_progress"]["current"]["processed"])
        passed_over = (keeper.data_found() - keeper.found["step"]) * self._trainer.accumulate_grad_batches
        if self._fresh:
            watched.go_on(None, keeper.generators, passed_over, state)
        else:
            watched.go_on(state, keeper.generators, keeper.share(done) + passed_over)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        keeper = self._keeper
        if keeper is None:
            return
        if isinstance(keeper, Keeper):
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            keeper.begin(
                start=trainer.global_step,
                model=trainer.strategy.model,
                optimizer=trainer.optimizers[0] if len(trainer.optimizers) == 1 else Several(trainer.optimizers),
                scheduler=Several(schedulers) if schedulers else None,
                scaler=None,
            )
        self._made = trainer.global_step
        # Lightning's own handler has a collective in it, which the ranks enter at different steps.
        keeper.listen()
        loop = trainer.fit_loop.epoch_loop
        self._undo.append(replace(loop, "advance", functools.partial(self._advance, loop.advance)))

    def _advance(self, original: Any, *args: Any, **kwargs: Any) -> None:
        """In place of the loop's: before each batch, what came after the step before is over."""
        keeper, trainer = self._keeper, self._trainer
        if keeper is not None:
            self._keep(keeper)
        if self._resumes:
            # What the step before has to be followed by is in the state: Lightning would look whether to validate.
            trainer.fit_loop.epoch_loop.restarting = False
            if self._fresh and isinstance(keeper, Keeper):
                keeper.generators()
        original(*args, **kwargs)

    def _keep(self, keeper: Keeper | Bystander) -> None:
        try:
            keeper.keep()
        except SystemExit:
            callback = self._trainer.checkpoint_callback
            if callback is not None or isinstance(keeper, Bystander):
                folder = getattr(callback, "dirpath", None) or self._trainer.default_root_dir
                self._trainer.save_checkpoint(Path(folder) / f"stopped-step={self._made}.ckpt")
            raise

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._resumes and isinstance(self._keeper, Keeper):
            # By now the batch is fetched. If a data set draws, they were put back before that.
            self._keeper.generators()
        self._resumes = self._fresh = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        keeper = self._keeper
        if keeper is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self._judges and isinstance(loss, torch.Tensor):
            self._losses.append(loss.detach().reshape(-1).sum())
        if trainer.global_step == self._made:
            return
        self._made = trainer.global_step
        total = torch.stack(self._losses).sum().item() if self._losses else None
        self._losses.clear()
        keeper.made(self._made, total, at_once=False)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            self._ended = True
            self._keep(keeper)
            keeper.close()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        keeper, self._keeper = self._keeper, None
        if isinstance(keeper, Keeper) and self._resumes:
            keeper.rest()
        while self._undo:
            self._undo.pop()()

    def _extra(self) -> dict[str, Any]:
        strategy, undo = self._trainer.strategy, []
        if self._shards:  # it would gather the whole model
            undo = [
                replace(strategy, name, lambda *args: {}) for name in ("lightning_module_state_dict", "optimizer_state")
            ]
        try:
            state = self._trainer._checkpoint_connector.dump_checkpoint(False)
        finally:
            for put_back in undo:
                put_back()
        kept = {key: value for key, value in state.items() if not _is_elsewhere(key)}
        return {"lightning": kept, "ended": self._horizon() if self._ended else []}

    def _horizon(self) -> list[int]:
        return [self._trainer.max_epochs or 0, self._trainer.max_steps]


def _is_elsewhere(key: str) -> bool:
    # The program makes its hyperparameters anew. They may be anything.
    return key in _ELSEWHERE or "hparams" in key or "hyper_parameters" in key


_fits = 0
"""The number of calls of fit() in this process, each once per Trainer's set-up."""
