"""Several models, optimizers, schedulers or scalers of one run, each with a name.

model={"generator": g, ...}       one part `model`; the name is before each key: generator.0.weight
optimizer={"generator": o, ...}   the parts `optimizer.generator`, ...; so are schedulers and scalers
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..errors import StateError

NAMED = ("optimizer", "scheduler", "scaler")
_NAME = re.compile(r"[\w-]+")


def named(part: str, given: Any) -> dict[str, Any]:
    """What was given as `part`, by the name of the part that each is. StateError for a mapping of other names."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        return {part: given}
    if not given:
        raise StateError(f"{part} is an empty mapping: give at least one, or leave it out")
    for name in given:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise StateError(f"{part} has the name {name!r}: give names of letters, digits, _ and -")
    return {f"{part}.{name}": one for name, one in given.items()}


def of(part: str, parts: Mapping[str, Any]) -> Iterator[str]:
    """The names in `parts` of what was given as `part`: one, or several."""
    return (name for name in parts if name == part or name.startswith(f"{part}."))


def values(part: str, parts: Mapping[str, Any]) -> list[Any]:
    """What was given as `part`: one, or several."""
    return [parts[name] for name in of(part, parts)]


def told(name: str) -> str:
    """The name of a part, for people."""
    return name.replace(".", " ", 1)


class Models(nn.Module):
    """Several models as one. Each keeps its own state_dict() and load_state_dict(). Not to be called."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        super().__init__()
        self.by_name = dict(models)
        # Not add_module(), which would refuse names such as `keys` or `train`.
        self._modules.update({name: model for name, model in models.items() if isinstance(model, nn.Module)})

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        found: dict[str, Any] = {}
        for name, model in self.by_name.items():
            state = model.state_dict()
            if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
                raise StateError(f"model {name}: its state_dict() is no dict with texts as keys")
            found.update({f"{name}.{key}": value for key, value in state.items()})
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> None:
        for name, model in self.by_name.items():
            head = f"{name}."
            inside = {key.removeprefix(head): v for key, v in state_dict.items() if key.startswith(head)}
            model.load_state_dict(inside)


def with_ema(model: Any, ema: Any) -> Any:
    """`model` and its average as a mapping. StateError if there is nothing that it is an average of."""
    if ema is None:
        return model
    if model is None or isinstance(ema, Mapping):
        raise StateError("ema is one average beside a model: give several in model={'model': ..., 'ema': ...}")
    models = model if isinstance(model, Mapping) else {"model": model}
    if "ema" in models:
        raise StateError("ema is given twice: in the mapping model= and as ema=")
    return {**models, "ema": ema}


def as_one(model: Any) -> Any:
    """The model, or several as one."""
    if not isinstance(model, Mapping):
        return model
    return Models({name.partition(".")[2]: one for name, one in named("model", model).items()})
