"""The order in which DDP sums up gradients, kept with a checkpoint, so that a resumed run sums as one that went on.

DDP fills its buckets anew after its first backward pass, in the order in which the gradients came. With three or more ranks
an all-reduce adds up the numbers of an element in an order that depends on its place in a bucket. A resumed run that starts
with DDP's first buckets computes a first step that differs in its last bits: with four ranks in every tensor (measured).
"""

from __future__ import annotations

import gc
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...rank import torch_patches
from ..errors import StateError

_ENOUGH = 3
"""With two ranks a + b = b + a, whatever the order."""


def _inside(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP that `model` is, or that torch.compile has wrapped."""
    while not isinstance(model, DistributedDataParallel):
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return None
        model = inner
    return model


def _around(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP that somebody has made of `model`; it takes some 50 ms to look."""
    found = (one for one in gc.get_objects() if issubclass(type(one), DistributedDataParallel))
    return next((one for one in found if one.__dict__.get("_modules", {}).get("module") is model), None)


class Buckets:
    """A part of a checkpoint: the indices of DDP's parameters in the order of its buckets, as one text.

    Empty before the first backward pass that was synchronised, without DDP, and with `find_unused_parameters`, where DDP
    keeps its first buckets. StateError for `static_graph` with three ranks or more: nobody can give it its order back.
    """

    def __init__(self, model: nn.Module | None, world_size: int) -> None:
        self._model = model
        self._world_size = world_size
        self._ddp = None if model is None else _inside(model)
        self._order = ""
        self._wanted = ""
        self._refuse()

    def state_dict(self) -> dict[str, str]:
        return {"order": self._order} if self._order else {}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """DDP's buckets are those of the run that saved `state`. A collective of DDP's group. Nothing is changed for a DDP
        of other parameters, or if there is none yet."""
        self._look_around()
        self._wanted = str(state.get("order", ""))
        order = [int(index) for index in self._wanted.split()]
        if self._ddp is not None and torch_patches.fill_buckets(self._ddp, order):
            self._order, self._wanted = self._wanted, ""

    def learn(self) -> str | None:
        """After a step of all ranks, each of which calls it: the order is known if DDP knows it. Returns a sentence, once,
        if a restored order came too late to be of use."""
        if self._order or self._world_size < 2:
            return None
        if self._ddp is None:
            self._look_around()
        if self._ddp is not None:
            self._order = " ".join(map(str, torch_patches.bucket_order(self._ddp)))
        if self._order and self._wanted:
            self._wanted = ""
            if self._world_size >= _ENOUGH:
                return (
                    "DDP was made after restore(): the first step may differ in its last bits from one of an undisturbed "
                    "run; make DDP before restore()"
                )
        return None

    def _look_around(self) -> None:
        if self._ddp is None and self._model is not None and self._world_size >= _ENOUGH:
            self._ddp = _around(self._model)
            self._refuse()

    def _refuse(self) -> None:
        if self._ddp is not None and self._ddp.static_graph and self._world_size >= _ENOUGH:
            raise StateError(
                f"DistributedDataParallel(static_graph=True) on {self._world_size} ranks: the order of its sums cannot be "
                "restored, and a resumed run would differ in its last bits; leave static_graph out"
            )


def of(model: Any, world_size: int) -> Buckets:
    """Those of `model`, if it is a module."""
    return Buckets(model if isinstance(model, nn.Module) else None, world_size)
