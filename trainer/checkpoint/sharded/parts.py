"""What a rank has of a DTensor, in a state that is each rank's own: gradients that wait, the stages of a pipeline.

apart()       each DTensor is a dict: this rank's part, the placements, the global shape, the corner of the part
together()    a DTensor again, on the mesh of a live one; on any other rank or mesh its part would be another one
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..errors import CheckpointMismatch, StateError
from ..format.boxes import Box
from ..format.plan import Spec
from .held import Held, box_of, is_sharded, local_of

_KEYS = frozenset({"part", "placements", "shape", "at"})
_PLACEMENT = re.compile(r"R|S\((?P<dim>\d+)\)|P\((?P<op>\w+)\)|_S\((?P<strided>\d+), (?P<split>\d+)\)")
"""How torch writes a placement."""


def part_of(name: str, tensor: Any) -> dict[str, Any]:
    """What this rank has of the DTensor `tensor`. StateError if that cannot be saved."""
    texts = [str(placement) for placement in tensor.placements]
    if not all(map(_PLACEMENT.fullmatch, texts)):
        raise StateError(
            f"{name} is a DTensor with the placements {texts}, which cannot be saved where it is a rank's own"
        )
    found = {"part": local_of(tensor), "placements": texts, "shape": list(tensor.shape)}
    return {**found, "at": list(_box(found, tensor).at)}


def is_part(value: Any) -> bool:
    """Whether part_of() made `value`."""
    return isinstance(value, dict) and value.keys() == _KEYS


def fits(found: Mapping[str, Any], like: Any) -> bool:
    """Whether this rank would have the same part on the mesh of `like`."""
    if not is_sharded(like) or len(found["placements"]) != like.device_mesh.ndim:
        return False
    box = _box(found, like)
    return [list(box.at), list(box.size)] == [found["at"], list(found["part"].shape)]


def made(found: Mapping[str, Any], like: Any) -> torch.Tensor:
    """The DTensor, on the mesh of `like`, which it fits."""
    shape = tuple(found["shape"])
    stride = tuple(like.stride()) if shape == tuple(like.shape) else torch.empty(shape, device="meta").stride()
    held = Held(Spec("", shape), _box(found, like), like.device_mesh, tuple(_placements(found["placements"])), stride)
    return held.made(found["part"].to(like.device))


def apart(value: Any, path: str) -> Any:
    """`value`, nested, with each DTensor as this rank's part of it."""
    if isinstance(value, torch.Tensor):
        return part_of(path, value) if is_sharded(value) else value
    return _each(value, lambda inner, key: apart(inner, f"{path}/{key}"))


def together(value: Any, part: Any, name: str) -> Any:
    """`value`, a state that apart() took apart, for the live `part` of that name. CheckpointMismatch if this rank has
    another part of a tensor."""
    if isinstance(part, torch.optim.Optimizer) and isinstance(value, dict) and "param_groups" in value:
        params = [param for group in part.param_groups for param in group["params"]]
        indices = [index for group in value["param_groups"] for index in group["params"]]
        like = dict(zip(indices, params, strict=False))
        states = {index: _joined(state, like.get(index), f"{name}/{index}") for index, state in value["state"].items()}
        return {**value, "state": states}
    if not isinstance(value, dict) or not _holds(value):
        return value
    live = part.state_dict()
    return {key: _joined(inner, live.get(key), f"{name}/{key}") for key, inner in value.items()}


def _holds(value: Any) -> bool:
    """Whether a DTensor was in `value`."""
    if is_part(value):
        return True
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(map(_holds, inside))


def _joined(value: Any, like: Any, path: str) -> Any:
    if not is_part(value):
        return _each(value, lambda inner, key: _joined(inner, like, f"{path}/{key}"))
    if not fits(value, like):
        raise CheckpointMismatch(
            f"{path} is a part of {value['shape']} from {value['at']} on, and this rank has another part: a stage of "
            "DTensors goes on in the layout that it was saved in"
        )
    return made(value, like)


def _each(value: Any, change: Callable[[Any, Any], Any]) -> Any:
    """`value` with what is in it changed, if it is a dict, list or tuple."""
    if type(value) in (list, tuple):
        return type(value)(change(inner, number) for number, inner in enumerate(value))
    if isinstance(value, dict) and not is_part(value):
        changed = {key: change(inner, key) for key, inner in value.items()}
        return value if all(changed[key] is inner for key, inner in value.items()) else changed
    return value


def _box(found: Mapping[str, Any], like: Any) -> Box:
    """Where the part is, on the mesh of `like`. A summand is as large as what is not cut."""
    from torch.distributed.tensor import Replicate

    placements = [Replicate() if p.is_partial() else p for p in _placements(found["placements"])]
    return box_of(found["shape"], like.device_mesh, placements, "a part")


def _placements(texts: Sequence[str]) -> list[Any]:
    """The placements that torch writes as these texts."""
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    made: list[Any] = []
    for text in texts:
        found = _PLACEMENT.fullmatch(text)
        if found is None:
            raise StateError(f"a DTensor was saved with the placement {text}, which this version does not know")
        if found["strided"]:
            made.append(_StridedShard(int(found["strided"]), split_factor=int(found["split"])))
        elif found["dim"]:
            made.append(Shard(int(found["dim"])))
        else:
            made.append(Partial(found["op"]) if found["op"] else Replicate())
    return made
