"""The order in which DDP sums up gradients. A checkpoint keeps it, so a resumed run sums like one without a break.

After its first backward pass DDP fills its buckets again, in the order in which the gradients came. With three or more
ranks, the order in which an all-reduce adds up an element depends on the element's place in a bucket. So a resumed run
that starts with DDP's first buckets would compute a first step with other last bits: with four ranks, in every tensor
(measured).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...rank import torch_patches
from ..errors import StateError
from ..sharded.held import is_sharded
from . import several

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


def _around(modules: Mapping[int, str], params: Sequence[int]) -> dict[str, DistributedDataParallel]:
    """The DDPs that wrap one of `modules` (names by id), by its name; and those around some of `params` (ids) by their
    order, as where only a part of what DDP wraps is saved. The search takes some 50 ms."""
    ddps = [one for one in gc.get_objects() if issubclass(type(one), DistributedDataParallel)]
    wrapped = [(ddp.__dict__.get("_modules", {}).get("module"), ddp) for ddp in ddps]
    found = {modules[id(module)]: ddp for module, ddp in wrapped if id(module) in modules}
    place, others = {number: at for at, number in enumerate(params)}, list[tuple[int, DistributedDataParallel]]()
    for module, ddp in wrapped:
        if isinstance(module, nn.Module) and id(module) not in modules:
            places = [place[id(param)] for param in module.parameters() if id(param) in place]
            others += [(min(places), ddp)] if places else []
    others.sort(key=lambda other: other[0])
    return {**found, **{f"around.{number}": ddp for number, (_, ddp) in enumerate(others)}}


_OTHERWISE = (
    "a pipeline's stage is a DDP and finds out shapes in its first step, in which torch sums up its first micro-batch "
    "apart: that step differs in its last bits from one of an undisturbed run; give PipelineStage input_args= and "
    "output_args= (requires_grad=True but for the input of the whole)"
)


def _stages(ddps: Iterable[DistributedDataParallel]) -> list[Any]:
    """The stages of torch.distributed.pipelining whose module is one of `ddps`."""
    pipelining = sys.modules.get("torch.distributed.pipelining.stage")
    kind = getattr(pipelining, "PipelineStage", None)
    known = set(map(id, ddps))
    found = gc.get_objects() if kind is not None and known else ()
    return [one for one in found if type(one) is kind and id(getattr(one, "submod", None)) in known]


def _infers(stage: Any) -> bool:
    """Whether `stage` has found out shapes by a forward pass (`_inference_mode`, read in pytorch 2.13)."""
    return not str(getattr(stage, "_inference_mode", None)).endswith("STATIC")


class Buckets:
    """A part of a checkpoint: for each DDP around the model or a part of it (a GAN has two), the indices of its
    parameters in the order of its buckets, as one text.

    A text is missing without DDP, before the first synchronised backward pass, and with `find_unused_parameters`, where
    DDP keeps its first buckets. StateError for `static_graph` with three or more ranks: its order cannot be restored.
    """

    def __init__(self, model: nn.Module | None, world_size: int, optimizers: Iterable[Any] = ()) -> None:
        self._world_size = world_size
        groups = [group for one in optimizers for group in getattr(one, "param_groups", ())]
        self._params = [param for group in groups for param in group["params"]]
        whole = None if model is None else _inside(model)
        self._model = model if whole is None else whole.module
        self._ddps: dict[str, DistributedDataParallel] = {} if whole is None else {"": whole}
        if self._model is not None:
            # Without torch.compile's wrapper, which a resumed run may not have.
            ddps = ((n, m) for n, m in self._model.named_modules() if isinstance(m, DistributedDataParallel))
            self._ddps.update({name.replace("_orig_mod.", "").removesuffix("._orig_mod"): ddp for name, ddp in ddps})
        self._orders: dict[str, str] = {}
        self._wanted: dict[str, str] = {}
        self._resumed = self._searched = False
        """Whether a step has looked for a DDP that nobody gave us. One look is enough: it takes some 50 ms."""
        self._refuse()

    def state_dict(self) -> dict[str, Any]:
        orders = dict(self._orders)
        whole = orders.pop("", "")
        return {**({"order": whole} if whole else {}), **({"orders": orders} if orders else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The buckets of each DDP are now those of the run that saved `state`. This is a collective of DDP's group.
        Nothing is changed if a DDP has other parameters, or is not there yet."""
        self._resumed = True
        self._look_around()
        self._wanted = {"": str(state.get("order", "")), **(state.get("orders") or {})}
        for name, ddp in sorted(self._ddps.items()):
            order = [int(index) for index in self._wanted.get(name, "").split()]
            if torch_patches.fill_buckets(ddp, order):
                self._orders[name] = self._wanted.pop(name)

    def begin_anew(self) -> None:
        """Each DDP has its first buckets, as before its first backward pass. Where the order does not matter, nothing
        is done."""
        if self._world_size >= _ENOUGH:
            self._look_around()
            for ddp in self._ddps.values():
                torch_patches.first_buckets(ddp)

    def learn(self) -> str | None:
        """Every rank calls it after a step: an order is known if its DDP knows it. Returns a sentence, once, if a
        restored order came too late to be used, or if torch sums the first step of a process in another way."""
        if self._world_size < 2:
            return None
        first, self._searched = not self._searched, True
        if first:
            self._look_around()
            if self._resumed and any(map(_infers, _stages(self._ddps.values()))):
                return _OTHERWISE
        late = False
        for name, ddp in sorted(self._ddps.items()):
            if name not in self._orders and (order := torch_patches.bucket_order(ddp)):
                self._orders[name] = " ".join(map(str, order))
                late |= bool(self._wanted.pop(name, ""))
        if late and self._world_size >= _ENOUGH:
            return (
                "DDP was made after restore(): the first step may differ in its last bits from one of an "
                "undisturbed run; make DDP before restore()"
            )
        return None

    def _look_around(self) -> None:
        if "" in self._ddps or self._world_size < _ENOUGH:
            return
        params = [*(self._model.parameters() if self._model is not None else ()), *self._params]
        if all(map(is_sharded, params)):
            return  # FSDP2 sums their gradients, and no DDP can be around them
        modules = self._model.named_modules() if self._model is not None else ()
        found = _around({id(module): name for name, module in modules}, list(map(id, params)))
        self._ddps = {**found, **self._ddps}
        self._refuse()

    def _refuse(self) -> None:
        if self._world_size >= _ENOUGH and any(ddp.static_graph for ddp in self._ddps.values()):
            raise StateError(
                f"DistributedDataParallel(static_graph=True) on {self._world_size} ranks: the order of its sums cannot "
                "be restored, and a resumed run would differ in its last bits; leave static_graph out"
            )


def of(model: Any, world_size: int, optimizer: Any = None) -> Buckets:
    """The buckets of `model`, if it is a module or a mapping of them, and of what `optimizer`, one or a mapping of
    them, steps."""
    model, optimizers = several.as_one(model), several.named("optimizer", optimizer).values()
    return Buckets(model if isinstance(model, nn.Module) else None, world_size, optimizers)
