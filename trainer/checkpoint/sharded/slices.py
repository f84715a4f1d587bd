"""Slices that a program has made by hand (tensor parallelism without DTensor), as it declares them.

shard_spec={"*.up.weight": Shard(0, rank, of)}     this rank's tensor is slice `rank` of `of` along dimension 0
learn      the ranks exchange the sizes of their slices  ->  the box of each in the global tensor
optimizer  a state that has the shape of its parameter is a slice as the parameter is
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import StateError
from ..format.boxes import Box
from ..format.plan import Spec
from ..group import Ranks
from ..state import several, tensors
from ..state.tensors import as_saved
from .held import Held, is_sharded


@dataclass(frozen=True, slots=True)
class Shard:
    """This rank's tensor is slice number `rank` of `of` along dimension `dim`. The global tensor is all slices, one
    after another; their sizes along `dim` may differ. Ranks with the same number hold the same slice."""

    dim: int
    rank: int
    of: int

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.of) or self.dim < 0:
            raise ValueError(f"{self}: give dim from 0 on, and rank from 0 to of - 1")


class Slices:
    """The slices of one run. `spec`: by name of a tensor of the model, or by a pattern of names (`*`, `?`, `[ab]`)."""

    def __init__(self, spec: Mapping[str, Shard] | None = None) -> None:
        self._spec = dict(spec or {})
        self._held: dict[str, Held] | None = None if self._spec else {}
        """By name in the model; None: not learned yet."""
        self._of_params: dict[str, list[str | None]] = {}
        """For each optimizer, the names of its parameters, in its order."""

    def learn(self, parts: Mapping[str, Any], ranks: Ranks) -> None:
        """The box of each slice is known. StateError, the same on every rank, if the slices do not fit together. All
        ranks call it."""
        if not any(ranks.exchange(bool(self._spec))):
            return
        model = parts.get("model")
        mine, problem = self._declared(model)
        told = ranks.exchange([mine, problem])
        if problems := [text for _, text in told if text]:
            raise StateError(problems[0])
        tables = [table for table, _ in told]
        # Every rank looks at all of them, so that all raise the same.
        names = {name for table in tables for name in table}
        boxes = {name: _box(name, mine[name][1] if name in mine else 0, tables) for name in sorted(names)}
        self._held = {name: boxes[name] for name in mine}
        known = {id(p): as_saved(name) for name, p in model.named_parameters()} if isinstance(model, nn.Module) else {}
        for part in several.of("optimizer", parts):
            groups = getattr(parts[part], "param_groups", ())
            self._of_params[part] = [known.get(id(param)) for group in groups for param in group["params"]]

    def _declared(self, model: Any) -> tuple[dict[str, list[Any]], str | None]:
        """For each tensor of `model` that is declared: [dim, rank, of, shape, type]; or what is wrong."""
        state = model.state_dict() if model is not None else {}
        found: dict[str, list[Any]] = {}
        for pattern, shard in self._spec.items():
            names = [name for name in state if fnmatch.fnmatchcase(name, pattern)]
            if not names:
                return {}, f"shard_spec has {pattern!r}, and the model has no tensor of such a name"
            for name in names:
                value = state[name]
                if not isinstance(value, torch.Tensor) or is_sharded(value) or value.dim() <= shard.dim:
                    return {}, f"shard_spec has {pattern!r}: {name} is no plain tensor with a dimension {shard.dim}"
                spec = tensors.spec_of(value, f"model/{name}")
                found[name] = [shard.dim, shard.rank, shard.of, spec.shape, spec.dtype]
        return found, None

    def held(self, path: str, tensor: torch.Tensor) -> Held | None:
        """What this rank holds of the tensor at `path` of the state; None for one that is no slice."""
        if self._held is None:
            raise StateError("shard_spec is given, and the ranks have not exchanged their slices: call restore() first")
        if not self._held:
            return None
        part, _, rest = path.partition("/")
        if part == "model":
            found = self._held.get(rest)
            if found is not None and found.box.size != tuple(tensor.shape):
                raise StateError(f"{path} was {list(found.box.size)} at restore(), and is {list(tensor.shape)} now")
            return found
        names, (state, number, *_) = self._of_params.get(part), [*rest.split("/"), "", ""]
        if names is None or state != "state" or not number.isdecimal() or int(number) >= len(names):
            return None
        found = self._held.get(names[int(number)] or "")
        return found if found is not None and found.box.size == tuple(tensor.shape) else None

    def of_params(self, part: str) -> list[Held | None]:
        """What this rank holds of the parameters of the optimizer `part`, in its order."""
        return [(self._held or {}).get(name or "") for name in self._of_params.get(part, ())]


def _box(name: str, number: int, tables: Sequence[Mapping[str, Any]]) -> Held:
    """Where slice `number` of the tensor `name` is in the global tensor. StateError if the slices are no whole."""
    shapes: dict[int, tuple[int, ...]] = {}
    about = {(table[name][0], table[name][2], table[name][4]) for table in tables if name in table}
    if len(about) != 1 or any(name not in table for table in tables):
        raise StateError(f"shard_spec: {name} is not a slice of one tensor, along one dimension, on all ranks")
    dim, of, dtype = about.pop()
    for table in tables:
        _, rank, _, shape, _ = table[name]
        if shapes.setdefault(rank, tuple(shape)) != tuple(shape):
            raise StateError(f"shard_spec: slice {rank} of {name} is not of the same shape on all ranks that have it")
    if lost := sorted(set(range(of)) - shapes.keys()):
        raise StateError(f"shard_spec: {name} has {of} slices, and no rank has slice {lost[0]}")
    if len({shape[:dim] + shape[dim + 1 :] for shape in shapes.values()}) > 1:
        raise StateError(
            f"shard_spec: the slices of {name} differ in more than dimension {dim}: {sorted(shapes.values())}"
        )
    at, size = [0] * len(shapes[number]), shapes[number]
    at[dim] = sum(shapes[rank][dim] for rank in range(number))
    whole = (*size[:dim], sum(shape[dim] for shape in shapes.values()), *size[dim + 1 :])
    return Held(Spec(dtype, whole), Box(tuple(at), size))
