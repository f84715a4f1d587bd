"""The names of an optimizer's parameters. Its own state has only their numbers, which follow the order it was given.

With the names beside it, a state comes back right into an optimizer that was made in another order, and one of other
parameters is a mismatch. Which of them were frozen is there, too: a program that thaws a layer at some step does not do
so again when it goes on from a later one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..sharded.held import is_sharded
from .tensors import as_saved

Names = list[str | None]


class Parameters:
    """A part of a checkpoint: the names of the parameters of `optimizer`, those that they have in `model`."""

    def __init__(self, model: Any, optimizer: Any) -> None:
        self._model = model if isinstance(model, nn.Module) else None
        self._optimizer = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
        self._seen: list[int] = []
        """The identities of the parameters, and whether they require a gradient, when the rest was made."""
        self._names: Names = []
        self._frozen: list[str] = []
        self._state: dict[str, str] = {}

    def names(self) -> Names:
        """In the order of the optimizer's groups. None for one that has no name."""
        self._look()
        return self._names

    def frozen(self) -> list[str]:
        """The names of those that do not require a gradient."""
        self._look()
        return self._frozen

    def state_dict(self) -> dict[str, str]:
        """As texts: a list would be encoded name by name, at each snapshot."""
        self._look()
        return self._state

    def _look(self) -> None:
        groups = self._optimizer.param_groups if self._optimizer is not None else []
        params = [param for group in groups for param in group["params"]]
        seen = [*map(id, params), *(param.requires_grad for param in params)]
        if seen == self._seen:  # else the module would be walked again at each snapshot
            return
        known = {} if self._model is None else {id(p): name for name, p in self._model.named_parameters()}
        given = [name for group in groups for name in _given(group)]
        found = [known.get(id(param)) or other for param, other in zip(params, given, strict=True)]
        self._seen, self._names = seen, [name and as_saved(name).replace("_orig_mod.", "") for name in found]
        trains = zip(self._names, params, strict=True)
        self._frozen = [name for name, param in trains if name and not param.requires_grad]
        texts = {"names": "\n".join(name or "" for name in self._names), "frozen": "\n".join(self._frozen)}
        self._state = texts if any(self._names) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing: the names say how the optimizer's state is to be read (see reordered)."""


def thawed(ours: Any, theirs: Any, where: str) -> str | None:
    """A sentence, if the parameters of the part `ours` that are frozen are not those of the stored part `theirs`."""
    text = theirs.get("frozen") if isinstance(theirs, dict) else None
    if not isinstance(ours, Parameters) or not isinstance(text, str):
        return None
    then, now = set(filter(None, text.split("\n"))), set(ours.frozen())
    told = [f"{', '.join(sorted(now - then)[:3])} trained there and is frozen here"] if now - then else []
    told += [f"{', '.join(sorted(then - now)[:3])} was frozen there and trains here"] if then - now else []
    if not told:
        return None
    return (
        f"{where}: {'; '.join(told)}: a program that thaws or freezes at some step must do so by the number of the "
        "step that restore() returns, or training goes on in another way"
    )


def names_of(part: Any) -> Names:
    """The names that a part of this kind has, or that its stored state has."""
    if isinstance(part, Parameters):
        return part.names()
    text = part.get("names") if isinstance(part, dict) else None
    return [name or None for name in text.split("\n")] if isinstance(text, str) else []


def _given(group: Mapping[str, Any]) -> Names:
    names = group.get("param_names")
    return list(names) if isinstance(names, list) else [None] * len(group["params"])


def reordered(stored: Any, theirs: Sequence[str | None], ours: Sequence[str | None]) -> tuple[Any, list[str]]:
    """The state `stored` of an optimizer, in the order of `ours`; and what does not fit. `theirs` are the names of its
    parameters. Unchanged if a name is not known, or if the groups have other sizes."""
    try:
        groups = [list(group["params"]) for group in stored["param_groups"]]
    except (KeyError, TypeError):
        return stored, []
    flat = [index for group in groups for index in group]
    whole = len(flat) == len(theirs) == len(ours) and all(theirs) and all(ours)
    if not whole or len(set(ours)) != len(ours) or list(theirs) == list(ours):
        return stored, []
    index_of = dict(zip(theirs, flat, strict=True))
    problems: list[str] = []
    moved, at = [], 0
    for number, (group, indices) in enumerate(zip(stored["param_groups"], groups, strict=True)):
        wanted, had = list(ours[at : at + len(indices)]), list(theirs[at : at + len(indices)])
        at += len(indices)
        problems += _differences(number, set(had), set(wanted))
        group = {**group, "params": [index_of.get(name) for name in wanted]}
        if isinstance(names := group.get("param_names"), list):
            named = dict(zip(had, names, strict=False))
            group["param_names"] = [named.get(name, name) for name in wanted]
        moved.append(group)
    return (stored, problems) if problems else ({**stored, "param_groups": moved}, [])


def _differences(number: int, had: set[Any], wanted: set[Any]) -> Iterator[str]:
    if had != wanted:
        lacks, has = ", ".join(sorted(wanted - had)), ", ".join(sorted(had - wanted))
        yield f"group {number} of its optimizer has {has} in the place of {lacks}"


def put_right(optimizer: Any, stored: Any) -> None:
    """The states of `optimizer`, which has loaded `stored`, have the types that they were saved with, and lie as their
    parameters do where they have their shape. Nothing is changed if it loads in a way of its own.

    torch's own way casts each tensor of a state to the type of its parameter, but for `step` (pytorch 2.13,
    `_process_value_according_to_param_policy`): states in fp32 of parameters in bf16 would be rounded, masks and counts
    would become floats. And it takes them as they come, in C order, where the optimizer had made them as its parameters
    lie: its fused kernels walk both as they lie in memory, so with channels_last each value would meet another
    weight."""
    if not isinstance(optimizer, torch.optim.Optimizer) or not _loads_as_torch(optimizer):
        return
    params = [param for group in optimizer.param_groups for param in group["params"]]
    indices = [index for group in stored["param_groups"] for index in group["params"]]
    for param, index in zip(params, indices, strict=True):
        live, saved = optimizer.state.get(param), stored["state"].get(index)
        if isinstance(live, dict) and isinstance(saved, dict):
            live.update({key: _right(live[key], saved[key], param) for key in saved if key in live and key != "step"})


def _loads_as_torch(optimizer: torch.optim.Optimizer) -> bool:
    # One around another optimizer may have none of what torch's own __init__ makes.
    own = vars(optimizer)
    hooks = own.get("_optimizer_load_state_dict_pre_hooks"), own.get("_optimizer_load_state_dict_post_hooks")
    return type(optimizer).load_state_dict is torch.optim.Optimizer.load_state_dict and not any(hooks)


def _right(live: Any, saved: Any, param: torch.Tensor) -> Any:
    if isinstance(live, dict) and isinstance(saved, dict):
        return {key: _right(value, saved.get(key), param) for key, value in live.items()}
    if type(live) in (list, tuple) and type(saved) is type(live) and len(saved) == len(live):
        return type(live)(_right(value, other, param) for value, other in zip(live, saved, strict=True))
    if not isinstance(live, torch.Tensor) or not isinstance(saved, torch.Tensor):
        return live
    if live.dtype != saved.dtype:
        live = saved.to(live.device)
    if live.shape != param.shape or live.stride() == param.stride() or is_sharded(param) or is_sharded(live):
        return live
    return torch.empty_like(param, dtype=live.dtype, device=live.device, requires_grad=False).copy_(live)
