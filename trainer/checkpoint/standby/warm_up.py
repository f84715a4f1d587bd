"""A warm-up of a standby: a training step that makes kernels, buffers and connections, and leaves no other trace.

What it has changed is put back to the bit: parameters, buffers, gradients, the states of optimizers, schedulers and
scalers, the data's place, the generators, and the buckets of DDP.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from ...rank.hooks.steps import unseen
from ..sharded.held import local_of
from ..state import rng, several
from ..state.buckets import Buckets
from ..state.state import Stateful
from .lending import gpus_of, on_gpu

_Undo = Callable[[], object]


def warm(warm_up: Callable[[], object], parts: Mapping[str, Stateful], buckets: Buckets) -> None:
    """`warm_up` has run, and the state of `parts` is what it was. The place in the data is not put back. Its exceptions
    pass through."""
    generators, undos = rng.capture(), [undo for name, part in parts.items() for undo in _undos(name, part)]
    with unseen():
        warm_up()
    if on_gpu():
        for device in gpus_of(parts):
            torch.cuda.synchronize(device)
    with torch.no_grad():
        for undo in undos:
            undo()
    buckets.begin_anew()
    rng.apply(generators)


def _undos(name: str, part: Any) -> Iterator[_Undo]:
    if isinstance(part, several.Models):
        for each in part.by_name.values():
            yield from _undos("model", each)
    elif isinstance(part, nn.Module):
        yield from _of_module(part)
    elif isinstance(part, torch.optim.Optimizer):
        yield _of_optimizer(part)
    elif isinstance(part, LRScheduler | torch.amp.GradScaler):
        yield from map(_of_attributes, _composed(part))
    elif name.partition(".")[0] in ("model", "optimizer", "scheduler", "scaler"):
        state = copy.deepcopy(part.state_dict())
        yield lambda: part.load_state_dict(state)


def _of_module(module: nn.Module) -> Iterator[_Undo]:
    for tensor in (*module.parameters(), *module.buffers()):
        yield _to(tensor, local_of(tensor).detach().clone())
    # A forward pass may put another tensor in a buffer's place, or make a buffer.
    buffers = [(each, dict(each._buffers)) for each in module.modules()]
    modes = [(each, each.training) for each in module.modules()]
    gradients = [(parameter, _copied(parameter.grad)) for parameter in module.parameters()]

    def undo() -> None:
        for each, held in buffers:
            each._buffers.clear()
            each._buffers.update(held)
        for each, training in modes:
            each.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient

    yield undo


def _to(tensor: torch.Tensor, value: torch.Tensor) -> _Undo:
    return lambda: local_of(tensor).detach().copy_(value)


def _of_optimizer(optimizer: torch.optim.Optimizer) -> _Undo:
    states = {parameter: _all_copied(state) for parameter, state in optimizer.state.items()}
    groups = [{key: _copied(value) for key, value in g.items() if key != "params"} for g in optimizer.param_groups]
    numbers = {key: value for key, value in vars(optimizer).items() if isinstance(value, int | float)}

    def undo() -> None:
        optimizer.state.clear()
        optimizer.state.update(states)
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            parameters = group["params"]
            group.clear()
            group.update(params=parameters, **before)
        for key in [key for key, value in vars(optimizer).items() if isinstance(value, int | float)]:
            if key not in numbers:
                delattr(optimizer, key)
        vars(optimizer).update(numbers)

    return undo


def _composed(part: Any) -> Iterator[Any]:
    """`part`, and the schedulers of which it is made."""
    yield part
    for value in vars(part).values():
        for inner in value if isinstance(value, list | tuple) else (value,):
            if isinstance(inner, LRScheduler):
                yield from _composed(inner)


def _of_attributes(part: Any) -> _Undo:
    before = _all_copied(vars(part))

    def undo() -> None:
        vars(part).clear()
        vars(part).update(before)

    return undo


def _all_copied(values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: _copied(value) for key, value in values.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return copy.copy(value) if isinstance(value, dict | list) else value
