"""For loops with accelerate, whose loop is the program's own:

    from supervise.callbacks.accelerate import SuperviseLoop
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    loop = SuperviseLoop(accelerator, data)
    for epoch in loop.epochs(3):
        for batch in loop:
            …

Under a supervisor each optimizer step is a snapshot in memory, and a restart goes on from it: in its epoch, with the
batch that comes next. The state is taken before the next batch, when the program has done what it does after a step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from ..checkpoint.group import ranks
from ..checkpoint.notices import Notices
from ..checkpoint.options import Every
from ..checkpoint.state.state import bare
from ..errors import UsageError
from ..rank.progress import progress
from ..rundir.environment import supervised
from .data import Watched, watch
from .keeper import Keeper
from .replacing import replace
from .several import Several

_WHOLE = ("NO", "MULTI_CPU", "MULTI_GPU")
"""Kinds of distribution in which every rank has the whole state. With FSDP2 (`is_fsdp2`) it has DTensors."""


class SuperviseLoop:
    """The epochs and batches that are left to train. It has the state of all that `accelerator` has prepared or
    registered; `data` is the loader that it trains on, prepared.

    Under a supervisor each optimizer step is a snapshot. On SIGTERM all ranks save the same step and exit with 75. A
    loss given to accelerator.backward() that is not finite ends the attempt before that step is saved, and the run goes
    back. Without a supervisor these are the epochs and batches, and nothing else is done. The options are
    Checkpointer's.

    `step` is the number of optimizer steps done, `epoch` the number of the epoch. `state` is a dict for the program's
    own values (numbers, text, tensors): it is saved with each step, and put back by epochs()."""

    def __init__(
        self,
        accelerator: Any,
        data: Any,
        every: Every = "auto",
        snapshot_every: Every = "auto",
        keep: int = 3,
        judge_loss: bool = True,
    ) -> None:
        self._accelerator, self._data = accelerator, data
        self._keeper: Keeper | None = None
        self._judges = judge_loss
        self._losses: list[torch.Tensor] = []
        self._began = False
        self._steps: int | None = None
        self._batch = 0
        self._skip = 0
        """Batches of the epoch to go on in that are left out."""
        self._watched: Watched | None = None
        self.step = self.epoch = 0
        self.state: dict[str, Any] = {}
        kind = accelerator.distributed_type.name
        if supervised() is None:
            return
        self._shards = bool(getattr(accelerator, "is_fsdp2", False))
        if kind not in _WHOLE and not self._shards:
            Notices(ranks().rank).say(
                f"no snapshots: {kind} may shard the state, so it begins anew after a restart; save with "
                "accelerator.save_state(), or use FSDP2 (fsdp_version=2)"
            )
            return
        self._keeper = Keeper(every=every, snapshot_every=snapshot_every, keep=keep, extra=self._extra)
        replace(accelerator, "backward", functools.partial(self._backward, accelerator.backward))

    def epochs(self, count: int, steps: int | None = None) -> Iterator[int]:
        """The numbers of the `count` epochs, from the one to go on in; no more than are needed for `steps` optimizer
        steps, after which the batches end, too. When they are over, the last step is saved."""
        keeper, self._steps = self._keeper, steps
        progress().told(total=steps)
        if keeper is not None:
            self._begin(keeper)
        while self.epoch < count and not self._over:
            yield self.epoch
            self.epoch, self._batch = self.epoch + 1, 0
        if keeper is not None:
            keeper.generators()
            keeper.close()
            self._keeper = None

    def __iter__(self) -> Iterator[Any]:
        """The batches that are left of this epoch."""
        keeper = self._keeper
        if keeper is None:
            for batch in self._data:
                yield batch
                self.step += self._accelerator.sync_gradients
                if self._over:
                    return
            return
        if not self._began:
            raise UsageError(
                "SuperviseLoop: it has batches in its epochs only: put `for epoch in loop.epochs(n):` around"
            )
        keeper.keep()
        if not self._skip:
            # An epoch begins. The generators are put back before its order is drawn.
            keeper.generators()
        self._skip = 0
        for batch in self._data:
            # Else they were put back before the first batch that had not been fetched.
            keeper.generators()
            yield batch
            self._batch += 1
            self._done(keeper)
            keeper.keep()
            if self._over:
                return
        keeper.generators()

    @property
    def _over(self) -> bool:
        return self._steps is not None and self.step >= self._steps

    def _begin(self, keeper: Keeper) -> None:
        accelerator, step = self._accelerator, keeper.look(whole=not self._shards)
        self._watched = watch(self._data, accelerator.gradient_accumulation_steps, lambda: self.epoch)
        keeper.watches(self._watched)
        if step is not None:
            found = keeper.found["extra"]["accelerate"]
            self.epoch, self._batch = found["epoch"], keeper.share(found["batch"])
            passed_over = (keeper.data_found() - step) * accelerator.gradient_accumulation_steps
            self._place(keeper.data(), self._batch + passed_over, keeper)
            for one, state in zip(accelerator._custom_objects, found["registered"], strict=True):
                one.load_state_dict(state)
            self.state.update(found["state"])
        models = [bare(model) for model in accelerator._models]
        self.step = keeper.begin(
            model=accelerator._models[0] if len(models) == 1 else torch.nn.ModuleList(models),
            optimizer=_one([optimizer.optimizer for optimizer in accelerator._optimizers]),
            scheduler=_one([scheduler.scheduler for scheduler in accelerator._schedulers]),
            scaler=accelerator.scaler,
        )
        self._began = True
        keeper.listen()

    def _place(self, state: dict[str, Any] | None, skip: int, keeper: Keeper) -> None:
        # By its number the loader gives its samplers the number of the epoch.
        self._data.iteration = self.epoch
        if self._watched is None:
            return
        self._skip = skip if self._batch else 0
        if self._batch and (state is None or state["mark"] == self.epoch):
            self._watched.go_on(state, keeper.generators, skip)
        else:
            self._watched.go_on(None, keeper.generators, skip, state)

    def _done(self, keeper: Keeper) -> None:
        accelerator = self._accelerator
        if not accelerator.sync_gradients:
            return
        self.step += 1
        loss = torch.stack(self._losses).sum().item() if self._losses else None
        self._losses.clear()
        if accelerator.optimizer_step_was_skipped:
            loss = None
        keeper.made(self.step, loss, at_once=False)

    def _backward(self, original: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
        if self._judges and isinstance(loss, torch.Tensor):
            self._losses.append(loss.detach().reshape(-1).sum())
        return original(loss, *args, **kwargs)

    def _extra(self) -> dict[str, Any]:
        registered = [one.state_dict() for one in self._accelerator._custom_objects]
        place = {"epoch": self.epoch, "batch": self._batch}
        return {"accelerate": {**place, "state": self.state, "registered": registered}}


def _one(parts: list[Any]) -> Any:
    return Several(parts) if len(parts) > 1 else parts[0] if parts else None
