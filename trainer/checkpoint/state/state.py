"""All that a run needs to go on: gathered from its parts as one nested dict, and put back into them.

    shared (the same on every rank):  model  optimizer  scaler  scheduler  data  guard  ddp  step  extra
    per rank:                         rng

The order of putting back: everything is compared first, so that a mismatch changes nothing; then model, optimizer, scheduler,
scaler, data, guard; the generators last, because putting the others back may draw from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import CheckpointMismatch
from . import rng
from .packing import Packed, Steadiness, pack


class Stateful(Protocol):
    """Anything with the two methods that models, optimizers, schedulers and scalers have."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


def bare(model: nn.Module) -> nn.Module:
    """The model itself, out of DDP and torch.compile: its keys are the same however it was run."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def capture(parts: Mapping[str, Stateful], step: int, extra: Any, pack: Callable[[Any], Packed] = pack) -> Packed:
    """The shared state of `parts` after `step` steps."""
    state = {name: part.state_dict() for name, part in parts.items()}
    return pack({**state, "step": step, "extra": extra})


def steadiness(parts: Mapping[str, Stateful]) -> Steadiness:
    """Of which tensors of `parts` it is known that only an optimizer's step changes them: the model's parameters and the
    optimizer's state, if it is one of torch's, which says when it steps. Not buffers: a forward pass changes those."""
    model, optimizer = parts.get("model"), parts.get("optimizer")
    if not isinstance(optimizer, torch.optim.Optimizer):
        return lambda path, tensor: False

    weights = {p.data_ptr() for p in model.parameters()} if isinstance(model, nn.Module) else set()

    def is_steady(path: str, tensor: torch.Tensor) -> bool:
        return path.startswith("optimizer/state/") or (path.startswith("model/") and tensor.data_ptr() in weights)

    return is_steady


def capture_rank(rank: int, generators: dict[str, Any] | None = None) -> Packed:
    """What is this rank's own; `generators` as rng.capture() gave them, or as they are now."""
    return pack({"rng": generators or rng.capture()}, f"rank{rank}")


def _shape(value: Any) -> str:
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def check_model(model: Stateful, stored: Any, where: str) -> None:
    """CheckpointMismatch, naming the first tensor that differs, unless `stored` fits `model` name for name and shape for
    shape."""
    if not isinstance(stored, dict):
        raise CheckpointMismatch(f"{where} holds no model")
    live = model.state_dict()
    for name, value in live.items():
        if name not in stored:
            raise CheckpointMismatch(f"{where} does not fit this model: it has no {name}, which the model has")
        other = stored[name]
        if not isinstance(value, torch.Tensor) or not isinstance(other, torch.Tensor):
            continue
        if (value.shape, value.dtype) != (other.shape, other.dtype):
            raise CheckpointMismatch(
                f"{where} does not fit this model: {name} is {_shape(other)} in the checkpoint and {_shape(value)} in "
                "the model"
            )
    for name in stored:
        if name not in live:
            raise CheckpointMismatch(f"{where} does not fit this model: it has {name}, which the model lacks")


def check_optimizer(optimizer: Stateful, stored: Any, where: str) -> None:
    """CheckpointMismatch unless `stored` has the same parameter groups as `optimizer`."""
    try:
        theirs = [len(group["params"]) for group in stored["param_groups"]]
    except (KeyError, TypeError):
        return  # not a torch optimizer; its own load_state_dict judges
    ours = [len(group["params"]) for group in optimizer.state_dict()["param_groups"]]
    if ours != theirs:
        raise CheckpointMismatch(
            f"{where} does not fit this optimizer: its groups have {theirs} parameters, the optimizer's have {ours}"
        )


def apply(parts: Mapping[str, Stateful], state: Mapping[str, Any], where: str) -> list[str]:
    """Every part goes on from `state`. Returns a sentence for each part that could not be restored because only one side
    has it; CheckpointMismatch, and nothing was changed, if the state is of another model or optimizer."""
    if "model" in parts:
        check_model(parts["model"], state.get("model"), where)
    if "optimizer" in parts:
        if "optimizer" not in state:
            raise CheckpointMismatch(f"{where} holds no optimizer state")
        check_optimizer(parts["optimizer"], state["optimizer"], where)
    missing = []
    if "ddp" in parts:
        # Nothing to warn of: without DDP, or before its first backward pass, there is no order.
        parts["ddp"].load_state_dict(state.get("ddp") or {})
    for name in ("model", "optimizer", "scheduler", "scaler", "data", "guard"):
        ours, theirs = parts.get(name), state.get(name)
        # A disabled GradScaler has the empty dict for its state, and a fresh one refuses it.
        if ours is None or not theirs:
            if ours is not None and ours.state_dict():
                missing.append(f"{where} has no {name} state: it starts afresh")
            elif theirs:
                missing.append(f"{where} has {name} state that nothing here takes: it is left out")
        else:
            _load(ours, theirs, name, where)
    return missing


def _load(part: Stateful, stored: Any, name: str, where: str) -> None:
    try:
        part.load_state_dict(stored)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointMismatch(f"{where} does not fit this {name}: {first}") from error
