"""The names of an optimizer's parameters. Its own state has only their numbers, which follow the order it was given.

With the names beside it, a state comes back right into an optimizer that was made in another order, and one of other
parameters is a mismatch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

Names = list[str | None]


class Parameters:
    """A part of a checkpoint: the names of the parameters of `optimizer`, those that they have in `model`."""

    def __init__(self, model: Any, optimizer: Any) -> None:
        self._model = model if isinstance(model, nn.Module) else None
        self._optimizer = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
        self._ids: list[int] = []
        self._names: Names = []

    def names(self) -> Names:
        """In the order of the optimizer's groups. None for one that has no name."""
        if self._optimizer is None:
            return []
        ids = [id(param) for group in self._optimizer.param_groups for param in group["params"]]
        if ids != self._ids:  # else the module is not walked again at each snapshot
            known = {} if self._model is None else {id(p): name for name, p in self._model.named_parameters()}
            given = [name for group in self._optimizer.param_groups for name in _given(group)]
            found = (known.get(number) or other for number, other in zip(ids, given, strict=True))
            self._ids, self._names = ids, [name and name.replace("_orig_mod.", "") for name in found]
        return self._names

    def state_dict(self) -> dict[str, str]:
        """As one text: a list of it would be encoded name by name, at each snapshot."""
        names = self.names()
        return {"names": "\n".join(name or "" for name in names)} if any(names) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing: the names say how the optimizer's state is to be read (see reordered)."""


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
