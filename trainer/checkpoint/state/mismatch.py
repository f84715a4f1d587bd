"""The differences between a stored state and the model and optimizer that are to load it. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

import torch

_TOLD = 5
"""The number of differences that a message names. The rest is counted."""

_LIKE_THE_PARAMETER = frozenset(
    {
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"),
        *("acc_delta", "sum", "ax", "prev", "step_size"),
    }
)
"""States of torch's optimizers (and of most others) that have the shape of their parameter."""

_OF_ANY_OPTIMIZER = frozenset(
    {
        *("params", "param_names", "lr", "weight_decay", "initial_lr", "swa_lr", "foreign", "maximize", "capturable"),
        *("differentiable", "fused", "decoupled_weight_decay"),
    }
)
"""Entries of a parameter group that do not tell one class of optimizer from another."""


def described(value: Any) -> str:
    """A tensor's shape and type, for people."""
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def sentence(where: str, problems: list[str]) -> str:
    """One line with the first of `problems` and the number of the others."""
    more = len(problems) - _TOLD
    told = "; ".join(problems[:_TOLD])
    return f"{where} does not fit: {told}" + (f"; and {more} more" if more > 0 else "")


def model_problems(live: Any, stored: Any, grown: Set[str] = frozenset()) -> list[str]:
    """The names, types and shapes in which `stored` differs from `live`, the state_dict() of the model. Those that have
    `grown` may have another shape."""
    if not isinstance(stored, dict):
        return ["it holds no model"]
    problems = []
    for name, value in live.items():
        if name not in stored:
            problems.append(f"it has no {name}, which the model has")
            continue
        other = stored[name]
        tensors = [isinstance(one, torch.Tensor) for one in (value, other)]
        if not any(tensors) or name in grown:
            continue
        if not all(tensors) or (value.shape, value.dtype) != (other.shape, other.dtype):
            problems.append(f"{name} is {described(other)} in the checkpoint and {described(value)} in the model")
    return problems + [f"it has {name}, which the model lacks" for name in stored if name not in live]


def optimizer_problems(
    optimizer: Any, stored: Any, names: list[str | None] | None = None, compared: bool = False
) -> list[str]:
    """Problems if `stored` is the state of another class of optimizer, of other groups, or of parameters of other
    shapes. `names` are the names of the parameters of `optimizer`, in its order. `compared`: the shapes of those that
    have one are compared with the model's, so they need not be guessed from their states."""
    try:
        theirs = [len(group["params"]) for group in stored["param_groups"]]
        ours = [len(group["params"]) for group in optimizer.state_dict()["param_groups"]]
    except (KeyError, TypeError):
        return []  # not a torch optimizer; its load_state_dict decides
    if ours != theirs:
        how = "; add a group before restore(), which peek() helps with, or restore(partial=True)"
        added = how if len(ours) != len(theirs) else ""
        return [f"its optimizer's groups have {theirs} parameters, this optimizer's have {ours}{added}"]
    if not isinstance(optimizer, torch.optim.Optimizer):
        return []
    return [*_of_another_class(optimizer, stored), *_misshapen(optimizer, stored, names or [], compared)]


def another_class(optimizer: torch.optim.Optimizer, stored: Any) -> str | None:
    """A sentence, if `stored` is not the state of an optimizer of this class."""
    try:
        return next(_of_another_class(optimizer, stored), None)
    except (KeyError, TypeError):
        return "its optimizer's state is not of an optimizer of torch"


def misshapen(param: torch.Tensor, states: Any) -> bool:
    """Whether `states`, an optimizer's of one parameter, are of a parameter of another shape than `param`."""
    return any(
        isinstance(value, torch.Tensor) and key in _LIKE_THE_PARAMETER and value.shape != param.shape
        for key, value in (states.items() if isinstance(states, dict) else ())
    )


def _of_another_class(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> Iterator[str]:
    theirs = {key for group in stored["param_groups"] for key in group}
    ours = {key for group in optimizer.param_groups for key in group}
    # If only one side has more entries, it is another version of the same optimizer, or has a scheduler.
    lacks, has = set(optimizer.defaults) - theirs - _OF_ANY_OPTIMIZER, theirs - ours - _OF_ANY_OPTIMIZER
    if lacks and has:
        yield (
            f"its optimizer is of another class than this {type(optimizer).__name__}: its groups have "
            f"{', '.join(sorted(has))} and no {', '.join(sorted(lacks))}"
        )


def _misshapen(
    optimizer: torch.optim.Optimizer, stored: Mapping[str, Any], names: list[str | None], compared: bool
) -> Iterator[str]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    indices = [index for group in stored["param_groups"] for index in group["params"]]
    if nobodys := {key for key in stored.get("state", {}) if str(key).isdecimal()} - {*indices}:
        yield f"its optimizer has states of {min(nobodys, key=str)!r}, which is no parameter of its groups"
    for number, (param, index) in enumerate(zip(params, indices, strict=True)):
        states = stored.get("state", {}).get(index)
        if not isinstance(states, dict):
            continue
        known = names[number] if number < len(names) else None
        name = known or f"parameter {number}"
        live = optimizer.state.get(param) or {}
        if live and states and live.keys() != states.keys():
            yield f"{name} has {', '.join(map(str, states))} in its optimizer, and {', '.join(map(str, live))} in this"
            continue
        for key, value in states.items():
            wanted = live[key].shape if isinstance(live.get(key), torch.Tensor) else None
            # An optimizer may keep its states in another shape: Muon flattens those of convolutions.
            if wanted is None and key in _LIKE_THE_PARAMETER and not (compared and known):
                wanted = param.shape
            if isinstance(value, torch.Tensor) and wanted is not None and value.shape != wanted:
                yield f"{name} has {key} {described(value)} in its optimizer, and the parameter is {described(param)}"
                break
