"""Gradients that FSDP2 has not reduced yet: with set_requires_gradient_sync(False) each rank keeps its own, whole, and
no parameter shows them.

These are private parts of torch, as read in pytorch 2.13 (`FSDPState._fsdp_param_groups`, older: `_fsdp_param_group`;
`FSDPParam.unsharded_accumulated_grad`, `_unsharded_param`, `_module_info`). Where torch lacks them nothing is found: a
save between micro-batches then loses such gradients without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """FSDP2's record of each parameter of `model` that it shards, by the parameter's name."""
    if not isinstance(model, nn.Module):
        return
    places = {id(module): place for place, module in model.named_modules()}
    for module in model.modules():
        get: Any = getattr(module, "_get_fsdp_state", lambda: None)
        state = get()
        groups = getattr(state, "_fsdp_param_groups", None)
        for group in [getattr(state, "_fsdp_param_group", None)] if groups is None else groups:
            for record in getattr(group, "fsdp_params", ()):
                about: Any = getattr(record, "_module_info", None)
                place = places.get(id(getattr(about, "module", None)))
                if place is not None and hasattr(record, "unsharded_accumulated_grad"):
                    yield f"{place}.{about.param_name}" if place else about.param_name, record


def gradient(record: Any) -> torch.Tensor | None:
    """This rank's whole gradient of that parameter, not reduced yet; None if there is none."""
    kept: torch.Tensor | None = record.unsharded_accumulated_grad
    return kept if kept is not None else getattr(getattr(record, "_unsharded_param", None), "grad", None)


def put(record: Any, grad: torch.Tensor | None) -> None:
    """The next backward pass of that parameter adds to `grad`."""
    record.unsharded_accumulated_grad = None if grad is None else grad.to(record.sharded_param.device)
    if (param := getattr(record, "_unsharded_param", None)) is not None:
        param.grad = None
