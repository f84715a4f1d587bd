"""The order in which DDP sums up gradients. A checkpoint keeps it, so a resumed run sums like one without a break.

After its first backward pass DDP fills its buckets again, in the order in which the gradients came. With three or more
ranks, the order in which an all-reduce adds up an element depends on the element's place in a bucket. So a resumed run
that starts with DDP's first buckets would compute a first step with other last bits: with four ranks, in every tensor
(measured).
"""

from __future__ import annotations

import gc
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...rank import torch_patches
from ..errors import StateError

_ENOUGH = 3
"""With two ranks the order does not matter: a + b = b + a."""


def _inside(model: nn.Module) -> DistributedDataParallel | None:
    """`model` itself if it is a DDP, or the DDP inside torch.compile's wrapper; else None."""
    while not isinstance(model, DistributedDataParallel):
        inner = getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return None
        model = inner
    return model


def _around(model: nn.Module) -> DistributedDataParallel | None:
    """A DDP that wraps `model`, or None. The search takes some 50 ms."""
    found = (one for one in gc.get_objects() if issubclass(type(one), DistributedDataParallel))
    return next((one for one in found if one.__dict__.get("_modules", {}).get("module") is model), None)


class Buckets:
    """A part of a checkpoint: the indices of DDP's parameters in the order of its buckets, as one text.

    The text is empty without DDP, before the first synchronised backward pass, and with `find_unused_parameters`, where
    DDP keeps its first buckets. StateError for `static_graph` with three or more ranks: its order cannot be restored.
    """

    def __init__(self, model: nn.Module | None, world_size: int) -> None:
        self._model = model
        self._world_size = world_size
        self._ddp = None if model is None else _inside(model)
        self._order = ""
        self._wanted = ""
        self._searched = False
        """Whether a step has looked for a DDP that nobody gave us. One look is enough: it takes some 50 ms."""
        self._refuse()

    def state_dict(self) -> dict[str, str]:
        return {"order": self._order} if self._order else {}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """DDP's buckets are now those of the run that saved `state`. This is a collective of DDP's group. Nothing is
        changed if the DDP has other parameters, or if there is no DDP yet."""
        self._look_around()
        self._wanted = str(state.get("order", ""))
        order = [int(index) for index in self._wanted.split()]
        if self._ddp is not None and torch_patches.fill_buckets(self._ddp, order):
            self._order, self._wanted = self._wanted, ""

    def learn(self) -> str | None:
        """Every rank calls it after a step: the order is known if DDP knows it. Returns a sentence, once, if a restored
        order came too late to be used."""
        if self._order or self._world_size < 2:
            return None
        if not self._searched:
            self._searched = True
            self._look_around()
        if self._ddp is not None:
            self._order = " ".join(map(str, torch_patches.bucket_order(self._ddp)))
        if self._order and self._wanted:
            self._wanted = ""
            if self._world_size >= _ENOUGH:
                return (
                    "DDP was made after restore(): the first step may differ in its last bits from one of an "
                    "undisturbed run; make DDP before restore()"
                )
        return None

    def _look_around(self) -> None:
        if self._ddp is None and self._model is not None and self._world_size >= _ENOUGH:
            self._ddp = _around(self._model)
            self._refuse()

    def _refuse(self) -> None:
        if self._ddp is not None and self._ddp.static_graph and self._world_size >= _ENOUGH:
            raise StateError(
                f"DistributedDataParallel(static_graph=True) on {self._world_size} ranks: the order of its sums cannot "
                "be restored, and a resumed run would differ in its last bits; leave static_graph out"
            )


def of(model: Any, world_size: int) -> Buckets:
    """The buckets of `model`, if it is a module."""
    return Buckets(model if isinstance(model, nn.Module) else None, world_size)
