"""A stored state for parts that it does not fit whole: what fits by name, type and shape is taken, and the rest keeps
what it has. Every difference is told."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch

from ..errors import CheckpointMismatch
from . import mismatch
from .parameters import Names

_TOLD = 5


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more


def model(live: Mapping[str, Any], stored: Any, where: str) -> tuple[dict[str, Any], list[str]]:
    """`live`, the model's state_dict(), with what of `stored` fits it; and sentences about the rest.
    CheckpointMismatch if nothing fits."""
    stored = stored if isinstance(stored, dict) else {}
    fits = {name for name, value in live.items() if name in stored and not mismatch.model_problems(
        {name: value}, {name: stored[name]}
    )}  # fmt: skip
    if live and not fits:
        problems = mismatch.model_problems(live, stored)
        raise CheckpointMismatch(mismatch.sentence(where, ["nothing of its model fits this one", *problems]))
    told = []
    if missing := [name for name in live if name not in stored]:
        told.append(f"it has no {_listed(missing)}: kept as in the model")
    if other := [name for name in live if name in stored and name not in fits]:
        shapes = [f"{name} ({mismatch.described(stored[name])})" for name in other]
        told.append(f"it has other shapes or types of {_listed(shapes)}: kept as in the model")
    if over := [name for name in stored if name not in live]:
        told.append(f"it has {_listed(over)}, which the model lacks: left out")
    return {name: stored[name] if name in fits else value for name, value in live.items()}, told


def optimizer(live: Any, stored: Any, theirs: Names, ours: Names) -> tuple[Any, list[str]]:
    """A state for the optimizer `live`, with what of `stored` is of its parameters; and sentences about the rest.
    `theirs` and `ours` are the names of the parameters in both."""
    if not isinstance(live, torch.optim.Optimizer):
        return stored, []
    state = live.state_dict()
    if other := mismatch.another_class(live, stored):
        return state, [f"{other}: it starts afresh"]
    flat = [index for group in stored["param_groups"] for index in group["params"]]
    params = [param for group in live.param_groups for param in group["params"]]
    if not (len(flat) == len(theirs) and all(theirs) and all(ours) and len(set(ours)) == len(ours)):
        if found := mismatch.optimizer_problems(live, stored):
            return state, [f"{found[0]}, and their names are not known: it starts afresh"]
        return stored, []
    index_of, taken, afresh = dict(zip(theirs, flat, strict=True)), dict[Any, Any](), list[str]()
    numbers = [index for group in state["param_groups"] for index in group["params"]]
    for name, param, number in zip(ours, params, numbers, strict=True):
        found_state = stored["state"].get(index_of.get(name)) if name in index_of else None
        if name not in index_of or mismatch.misshapen(param, found_state):
            afresh.append(str(name))
        elif found_state is not None:
            taken[number] = found_state
    told = [f"its optimizer has no state that fits {_listed(afresh)}: made anew"] if afresh else []
    if over := [str(name) for name in theirs if name not in set(ours)]:
        told.append(f"its optimizer has {_listed(over)}, which this one lacks: left out")
    groups, kept = _grouped(state["param_groups"], stored["param_groups"], theirs, ours)
    if kept:
        there, here = len(stored["param_groups"]), len(groups)
        told.append(
            f"its optimizer has {there} groups, this one {here}: those of {_listed(kept)} keep their learning rate "
            "and what else they have here"
        )
    return {**stored, "state": taken, "param_groups": groups}, told


def _grouped(live: Any, stored: Any, theirs: Names, ours: Names) -> tuple[list[Any], list[str]]:
    """The groups `live`, each with the values of the stored group from which all of its parameters come that are known
    there. One of new parameters, or of several groups, keeps its own: the first name of each of these."""
    numbers = [number for number, group in enumerate(stored) for _ in group["params"]]
    group_of, names = dict(zip(theirs, numbers, strict=True)), iter(ours)
    groups, kept = [], []
    for mine in live:
        here = list(islice(names, len(mine["params"])))
        of = {group_of[name] for name in here if name in group_of}
        given = stored[of.pop()] if len(of) == 1 else {}
        groups.append({**mine, **{key: value for key, value in given.items() if key not in ("params", "param_names")}})
        if here and not given:
            kept.append(str(here[0]))
    return groups, kept


def gradients(live: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `stored` that are of parameters here. `live` is the part that takes them."""
    return {name: grad for name, grad in stored.items() if not live.check({name: grad})}
