"""Which box of each stored tensor this rank needs now: the boxes of the live tensors, whatever rank wrote what.

model, extra        a live DTensor of that name and shape: its box
optimizer           the parameter's name leads from the stored state to the live parameter, and its box is the
                    state's: so an optimizer that has made no states yet gets the right ones
anything else       the whole tensor
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..format.manifest import Manifest, StoredTensor
from ..format.plan import Spec
from ..state import several, tree
from ..state.packing import Packed
from ..state.parameters import names_of
from .held import Held, held, is_sharded
from .slices import Slices


class _Name(str):
    """The name of a tensor, as a type, to tell it from other text."""


class Places:
    """The boxes that this rank needs, with the parts `parts`, whose state is `fresh`."""

    def __init__(self, parts: Mapping[str, Any], fresh: Packed, slices: Slices | None = None) -> None:
        self._fresh, self._parts, self._slices = fresh, parts, slices or Slices()

    def __call__(self, manifest: Manifest) -> dict[str, Held]:
        """By name, the boxes of those tensors of `manifest` that are sharded here."""
        found = {
            name: place
            for name, place in {**self._fresh.placed, **self._tied()}.items()
            if name in manifest.tensors and manifest.tensors[name].shape == place.spec.shape
        }
        for part in several.of("optimizer", self._parts):
            found.update(self._of_optimizer(part, manifest))
        return {name: _typed(place, manifest.tensors[name]) for name, place in found.items()}

    def _tied(self) -> dict[str, Held]:
        """Of the model's tensors that are tied to an earlier one, by their own names: a checkpoint may have both."""
        model = self._fresh.tree.get("model") if isinstance(self._fresh.tree, dict) else None
        named = {
            f"model/{key}".replace("@", "%40"): value["$tensor"]
            for key, value in (model.items() if isinstance(model, dict) else ())
            if isinstance(value, dict) and isinstance(value.get("$tensor"), str)
        }
        return {path: self._fresh.placed[name] for path, name in named.items() if name in self._fresh.placed}

    def _of_optimizer(self, part: str, manifest: Manifest) -> list[tuple[str, Held]]:
        params = _held_params(self._parts[part], self._slices.of_params(part))
        if not any(params):
            return []
        names = f"parameters{part.removeprefix('optimizer')}"
        try:
            stored = tree.decode(manifest.state[part], _Name)
            indices = [index for group in stored["param_groups"] for index in group["params"]]
            states = {index: dict(stored["state"][index]) for index in indices if index in stored["state"]}
            theirs = names_of(manifest.state.get(names))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return []  # whoever takes this state says what is wrong with it
        ours = names_of(self._parts.get(names))
        by_name = dict(zip(ours, params, strict=False))
        # The same rule as reordered(): by name if all have one, else by their order.
        named = len(theirs) == len(indices) and all(theirs) and all(ours) and len(by_name) == len(params)
        found: list[tuple[str, Held]] = []
        for number, index in enumerate(indices):
            param = by_name.get(theirs[number]) if named else params[number] if number < len(params) else None
            for name in states.get(index, {}).values():
                if param is not None and isinstance(name, _Name) and str(name) in manifest.tensors:
                    found += _of_param(param, str(name), manifest.tensors[name])
        return found


def _held_params(optimizer: Any, slices: Sequence[Held | None]) -> list[Held | None]:
    """The parameters of `optimizer`, in its order, of which some are `slices`; None for one that every rank has
    whole."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return []
    params = [param for group in optimizer.param_groups for param in group["params"]]
    declared = slices or [None] * len(params)
    return [held(p, "a parameter") if is_sharded(p) else slice for p, slice in zip(params, declared, strict=True)]


def _of_param(param: Held, name: str, stored: StoredTensor) -> list[tuple[str, Held]]:
    """The place of a state of the parameter `param`; none if it is a plain tensor here."""
    if stored.shape == param.spec.shape and stored.shape:
        return [(name, param)]
    # A state of another shape (Adafactor's rows and columns) is a DTensor only if it was one.
    return [(name, param.like(stored.spec))] if stored.placements and param.mesh is not None else []


def _typed(place: Held, stored: StoredTensor) -> Held:
    """`place`, of the stored type: another type is for the comparison with the live part to tell."""
    return Held(Spec(stored.dtype, place.spec.shape), place.box, place.mesh, place.placements, place.stride)
