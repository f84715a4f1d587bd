"""The state_dict() of a model, kept from one snapshot to the next. The modules are walked again only after a change.

    walked      every module and tensor is noted by identity, each tensor with its address, shape, stride and type
    next time   all of it is as noted: the same dict again, whose tensors lie where the model's do. Else walked again

A state_dict() takes its values from three dicts of each module. They are compared key by key and object by object, so a
replaced parameter, a new buffer, another submodule, a tensor whose .data was set are all seen, and a hook too. A model
is walked each time if a class, an object or a hook of it makes its state another way, or if its tensors are of a class
of their own (DTensor).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from ..state.several import Models
from ..state.tensors import lie_as, place_of

_WAYS = ("state_dict", "_save_to_state_dict", "get_extra_state")
_HELD = ("_parameters", "_buffers", "_modules")
_CLASSES = (torch.Tensor, nn.Parameter)


class Walked:
    """The state of `model`. `state` is what state_dict() returned last, and is the same object until something
    changes."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.state: Any = None
        self._modules: list[nn.Module] = []
        self._kinds: set[type] = set()
        """Their classes."""
        self._noted: tuple[list[Any], list[int]] | None = None
        self._tensors: list[torch.Tensor] = []
        self._places: list[tuple[Any, ...]] = []
        self._alive: list[Any] = []

    def state_dict(self) -> Any:
        """As the model's own; a plain dict, where that is an OrderedDict."""
        if not self._is_unchanged():
            state: Any = self._model.state_dict()
            self.state = dict(state) if type(state) is OrderedDict else state
            self._note()
        return self.state

    def _note(self) -> None:
        modules = list(self._model.modules())
        known = True
        if isinstance(self._model, Models):  # its state is that of all of them, each under its name
            modules, known = modules[1:], len(self._model.by_name) == len(self._model._modules)
        known &= all(isinstance(vars(module).get(name), dict) for module in modules for name in _HELD)
        self._modules, self._kinds = modules if known else [], set(map(type, modules))
        # Kept alive, so that an identity stands for one object.
        self._alive = [value for module in self._modules for name in _HELD for value in vars(module)[name].values()]
        self._tensors = [value for value in self._alive if isinstance(value, torch.Tensor)]
        self._noted = self._looked_at()
        if self._noted is None or any(type(tensor) not in _CLASSES for tensor in self._tensors):
            self._modules = []
            return
        self._places = [place_of(tensor) for tensor in self._tensors]

    def _is_unchanged(self) -> bool:
        return (
            bool(self._modules)
            and self._looked_at() == self._noted
            and lie_as(self._tensors, self._tensors, self._places)
        )

    def _looked_at(self) -> tuple[list[Any], list[int]] | None:
        """The classes of all modules and the keys of their dicts; how many are in each dict, and what, by identity.
        None if a module does not make its state as torch's own do."""
        for kind in self._kinds:
            if any(getattr(kind, way, None) is not getattr(nn.Module, way) for way in _WAYS):
                return None
        keys: list[Any] = [*map(type, self._modules)]
        found: list[int] = []
        for own in map(vars, self._modules):
            if own.get("_state_dict_hooks") or own.get("_state_dict_pre_hooks"):
                return None
            if "state_dict" in own or "_save_to_state_dict" in own:
                return None
            for name in _HELD:
                part = own.get(name) or ()
                found.append(len(part))
                if part:
                    keys += part
                    found += map(id, part.values())
            if unsaved := own.get("_non_persistent_buffers_set"):
                keys.append(frozenset(unsaved))
        return keys, found
