"""Things that no checkpoint can hold, refused at once: a model, optimizer or tensor that would not come back the same.

Each refusal is one sentence that says what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import StateError
from ..state import several

_PARTS = ("model", "optimizer", "scheduler", "scaler", "data")


def _is_a(value: object, module: str, name: str) -> bool:
    """Whether the type of `value` is that class, or derived from it. It is found by name, so FSDP need not be
    imported."""
    return any(kind.__name__ == name and kind.__module__.startswith(module) for kind in type(value).__mro__)


def refuse(parts: Mapping[str, Any]) -> None:
    """StateError unless `parts` (by name; None: not given; or several by a name) are of kinds that can be saved."""
    for part in _PARTS:
        for name, one in (several.named(part, parts.get(part)) if part != "data" else {part: parts.get(part)}).items():
            where = several.told(name)
            if one is not None or where != part:
                _refuse_one(part, where, one)


def _refuse_one(part: str, where: str, one: Any) -> None:
    if not (hasattr(one, "state_dict") and hasattr(one, "load_state_dict")):
        raise StateError(_not_stateful(part, where, one))
    for inside in one.modules() if isinstance(one, nn.Module) else ():
        if _is_a(inside, "torch.distributed.fsdp", "FullyShardedDataParallel"):
            raise StateError(
                f"{where} has FullyShardedDataParallel (FSDP1) in it, whose flat shards cannot be told apart in a "
                "checkpoint: use fully_shard (FSDP2) or DistributedDataParallel"
            )
    if _is_a(one, "torch.distributed.optim", "ZeroRedundancyOptimizer"):
        raise StateError(
            f"{where} is a ZeroRedundancyOptimizer, of which each rank has another part: use the optimizer that it "
            "wraps, on all parameters of each rank"
        )


def _not_stateful(part: str, where: str, one: object) -> str:
    what = f"{where} is a {type(one).__name__}"
    if not isinstance(one, list | tuple | dict):
        return f"{what}, which has no state_dict() and load_state_dict()"
    if part == "data":
        return f"{what}: give one object whose state_dict() and load_state_dict() are those of all of them together"
    return f"{what}: give a mapping of names, such as {part}={{'generator': ..., 'discriminator': ...}}"


def draws_anew(data: Any) -> str | None:
    """A sentence, if `data` would give other batches after a restore than in an undisturbed run; else None."""
    if not _is_a(data, "torch.utils.data", "DataLoader") or getattr(data, "generator", data) is not None:
        return None
    return (
        "data is a DataLoader without a generator: iter() of it draws from torch's global one, so the run is not the "
        "same to the bit after a restore; give it generator=torch.Generator()"
    )


def _is_expanded(value: torch.Tensor) -> bool:
    if value.layout != torch.strided or value.is_nested or not value.numel():
        return False
    return any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True))


def refuse_unready(model: Any) -> None:
    """StateError if `model` has tensors into which no state can be loaded yet."""
    if not isinstance(model, nn.Module):
        return
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value):
            raise StateError(
                f"model/{name} has no shape yet (a Lazy module): run the model once on an example before restore()"
            )
        if value.device.type == "meta":
            raise StateError(
                f"model/{name} is on the meta device: call model.to_empty(device=...) before restore(), and initialize "
                "it, since without a checkpoint training starts from what is there"
            )
        if _is_expanded(value):
            raise StateError(
                f"model/{name} is an expanded tensor, whose elements share memory: nothing can be loaded into it; "
                "store .contiguous() of it"
            )
