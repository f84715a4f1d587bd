"""Gradients that FSDP2 has not reduced yet, and no parameter shows: with set_requires_gradient_sync(False) each rank
keeps its own, whole; with set_requires_all_reduce(False) those of a group of parameters, summed up among the shards and
not among the copies.

These are private parts of torch, as read in pytorch 2.13 (`FSDPState._fsdp_param_groups`, older: `_fsdp_param_group`;
`FSDPParam.unsharded_accumulated_grad`, `_unsharded_param`, `_module_info`, `padded_sharded_param_size`;
`FSDPParamGroup._partial_reduce_output`). Where torch lacks them nothing is found: a
save between micro-batches then loses such gradients without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """FSDP2's record of each parameter of `model` that it shards, by the parameter's name."""
    for found in _named(model).values():
        yield from found[1]


def groups(model: Any) -> Iterator[tuple[str, Any]]:
    """The groups in which FSDP2 reduces gradients, each by the name of its first parameter."""
    for group, found in _named(model).values():
        if found and hasattr(group, "_partial_reduce_output"):
            yield found[0][0], group


def _named(model: Any) -> dict[int, tuple[Any, list[tuple[str, Any]]]]:
    """Each group by its identity, with the records of its parameters by name."""
    all_groups: dict[int, tuple[Any, list[tuple[str, Any]]]] = {}
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    places = {id(module): place for place, module in modules.items()}
    for module in modules.values():
        get: Any = getattr(module, "_get_fsdp_state", lambda: None)
        state = get()
        own = getattr(state, "_fsdp_param_groups", None)
        for group in [getattr(state, "_fsdp_param_group", None)] if own is None else own:
            for record in getattr(group, "fsdp_params", ()):
                about: Any = getattr(record, "_module_info", None)
                place = places.get(id(getattr(about, "module", None)))
                if place is not None and hasattr(record, "unsharded_accumulated_grad"):
                    name = f"{place}.{about.param_name}" if place else about.param_name
                    all_groups.setdefault(id(group), (group, []))[1].append((name, record))
    return all_groups


def summed(group: Any) -> torch.Tensor | None:
    """This rank's part of the gradients of that group, summed up among the shards only; None if there is none."""
    found: torch.Tensor | None = group._partial_reduce_output
    return found


def put_summed(group: Any, sums: torch.Tensor | None) -> None:
    """The next backward pass of that group adds to `sums`."""
    group._partial_reduce_output = None if sums is None else sums.to(group.device)


def fits(sums: torch.Tensor, group: Any) -> bool:
    """Whether `sums` are as large as those of that group are."""
    size: int = sum(record.padded_sharded_param_size.numel() for record in group.fsdp_params)
    return sums.numel() == size


def gradients(model: Any) -> Iterator[torch.Tensor | None]:
    """What each parameter and each group of `model` has that no parameter shows."""
    for group, found in _named(model).values():
        yield from (gradient(record) for _, record in found)
        yield getattr(group, "_partial_reduce_output", None)


def gradient(record: Any) -> torch.Tensor | None:
    """This rank's whole gradient of that parameter, not reduced yet; None if there is none."""
    kept: torch.Tensor | None = record.unsharded_accumulated_grad
    return kept if kept is not None else getattr(getattr(record, "_unsharded_param", None), "grad", None)


def put(record: Any, grad: torch.Tensor | None) -> None:
    """The next backward pass of that parameter adds to `grad`."""
    record.unsharded_accumulated_grad = None if grad is None else grad.to(record.sharded_param.device)
    if (param := getattr(record, "_unsharded_param", None)) is not None:
        param.grad = None
