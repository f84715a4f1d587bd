"""Gradients that wait for an optimizer's step: each rank's own. A checkpoint holds them only if it is asked to, so a
save in between loses them otherwise."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..errors import StateError
from ..sharded import parts, unreduced
from ..sharded.held import is_sharded
from . import several

_SUMMED = ", and those reduced with it"
"""After the name of a parameter: what FSDP2 has summed up of its group among the shards only. No parameter has it."""


class Waiting:
    """A part of a checkpoint: the gradients of all parameters of the model and the optimizers, as they are now. Of a
    DTensor, this rank's part of the gradient, and what FSDP2 has not reduced yet."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts = parts

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, param in self._params():
            if param.grad is not None:
                found[name] = {"part": parts.part_of(name, param.grad)} if is_sharded(param.grad) else param.grad
        for name, record in unreduced.parameters(self._parts.get("model")):
            if (grad := unreduced.gradient(record)) is not None:
                if is_sharded(grad):
                    raise StateError(
                        f"{name} has gradients that FSDP2 has not reduced, and its tensor parallelism neither: they "
                        "cannot be saved; leave grads=True out and call step() only after optimizer.step()"
                    )
                found[name] = {**found.get(name, {}), "unreduced": grad}
        for name, group in unreduced.groups(self._parts.get("model")):
            if (sums := unreduced.summed(group)) is not None:
                found[f"{name}{_SUMMED}"] = sums
        return found

    def check(self, state: Mapping[str, Any]) -> list[str]:
        """What in `state` is no gradient of a parameter here."""
        params, records = dict(self._params()), dict(unreduced.parameters(self._parts.get("model")))
        groups = {f"{name}{_SUMMED}": group for name, group in unreduced.groups(self._parts.get("model"))}
        return [
            f"it has a gradient of {name}, {_shape(grad)}, which no parameter here has"
            for name, grad in state.items()
            if not (name in groups and unreduced.fits(grad, groups[name]))
            and (name not in params or not _fits(grad, params[name], name in records))
        ]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, param in self._params():
            grad = state.get(name)
            if isinstance(grad, dict):
                grad = parts.made(grad["part"], param) if "part" in grad else None
            param.grad = None if grad is None else grad.to(param.device)
        for name, record in unreduced.parameters(self._parts.get("model")):
            kept = state.get(name)
            unreduced.put(record, kept.get("unreduced") if isinstance(kept, dict) else None)
        for name, group in unreduced.groups(self._parts.get("model")):
            unreduced.put_summed(group, state.get(f"{name}{_SUMMED}"))

    def _params(self) -> Iterator[tuple[str, torch.Tensor]]:
        model, known = self._parts.get("model"), set[int]()
        for name, param in model.named_parameters() if isinstance(model, nn.Module) else ():
            known.add(id(param))
            yield name, param
        for part in several.of("optimizer", self._parts):
            groups = getattr(self._parts[part], "param_groups", ())
            params = (param for group in groups for param in group["params"])
            for number, param in enumerate(params):
                if id(param) not in known:
                    yield f"{part}/{number}", param


def _shape(grad: Any) -> list[int]:
    if not isinstance(grad, dict):
        return [*grad.shape]
    return list(grad["part"]["shape"] if "part" in grad else grad["unreduced"].shape)


def _fits(grad: Any, param: Any, is_recorded: bool) -> bool:
    """Whether `grad`, as it was saved, is of a parameter like `param`, on a mesh like its own. `is_recorded`: FSDP2 can
    take a gradient that it has not reduced."""
    if _shape(grad) != list(param.shape) or (isinstance(grad, dict) != is_sharded(param)):
        return False
    if not isinstance(grad, dict):
        return True
    return ("unreduced" not in grad or is_recorded) and ("part" not in grad or parts.fits(grad["part"], param))


class Gradients:
    """Watches the optimizers in `parts`. A GradScaler in them leaves out an optimizer's step now and then."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        optimizers = several.values("optimizer", parts)
        self._optimizers = [one for one in optimizers if isinstance(one, torch.optim.Optimizer)]
        self._model = parts.get("model")
        scalers = several.values("scaler", parts)
        self._scalers = [one for one in scalers if getattr(one, "is_enabled", bool)()]
        self._scales: list[float] = []
        self.ahead = False
        """Whether an optimizer in the parts has stepped since this was last set to False."""
        self._stepped, self._told = False, "gradients" in parts
        if not self._optimizers:
            return
        itself = weakref.ref(self)

        def after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            if (gradients := itself()) is not None:
                gradients._stepped = True
                gradients.ahead |= any(one is optimizer for one in gradients._optimizers)

        # Of every optimizer: the given one may be a framework's, around another. It stays: removed by the garbage
        # collector within a step, it would break torch's loop over the hooks.
        register_optimizer_step_post_hook(after_step)

    def pending(self, saves: bool) -> str | None:
        """Called once for each finished step. Returns a sentence, once, if gradients wait that a resume from this step
        would lose. `saves`: whether its state is kept."""
        stepped, self._stepped = self._stepped, False
        if stepped or self._told or not saves or not self._optimizers:
            return None
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        if any(group.get("capturable") for group in groups):
            return None  # a CUDA graph may have its steps, and calls no hook
        found = any(param.grad is not None for group in groups for param in group["params"])
        if not (found or any(grad is not None for grad in unreduced.gradients(self._model))) or self._was_left_out():
            return None
        self._told = True
        return (
            "gradients are pending at this save, and a checkpoint does not hold them, so a resume would lose them; "
            "call step() and save() of the Checkpointer only after optimizer.step(), not after each micro-batch, or "
            "give it grads=True"
        )

    def _was_left_out(self) -> bool:
        """Whether a scaler may have left an optimizer's step out. Each time it does, its scale is another."""
        before, self._scales = self._scales, [float(scaler.get_scale()) for scaler in self._scalers]
        return before != self._scales
