"""Tensors of which each rank holds a box: DTensors, as FSDP2 and tensor parallelism make them.

A DTensor has a mesh of ranks and a placement for each dimension of it. From these follows which box this rank holds:

    Shard(d)                 dimension d of what is held so far is cut into chunks (as torch.chunk), this rank has one
    _StridedShard(d, n)      it is cut into n parts first, and each part into chunks: FSDP2 over tensor parallelism
    Replicate()              all of it
    Partial()                a summand, not a part of the values: refused
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import StateError
from ..format.boxes import Box
from ..format.plan import Spec
from ..state import tensors

Runs = list[tuple[int, int]]
"""Indices of one dimension, as (first, last + 1)."""


def is_sharded(value: object) -> bool:
    """Whether `value` is a DTensor."""
    # Without the module there are none; to import it takes a while.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank has of `tensor`; the tensor itself if it is no DTensor."""
    if not is_sharded(tensor):
        return tensor
    sharded: Any = tensor
    with torch.no_grad():
        local: torch.Tensor = sharded.to_local()
    return local


def locals_of(values: list[torch.Tensor]) -> list[torch.Tensor]:
    """What this rank has of each of `values`. The list itself if there is no DTensor among them."""
    module = sys.modules.get("torch.distributed.tensor")
    kind: Any = module and module.DTensor
    if module is None or not any(isinstance(value, kind) for value in values):
        return values
    with torch.no_grad():
        return [value.to_local() if isinstance(value, kind) else value for value in values]


def placement_of(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """What says which box of a DTensor this rank has; None for any other tensor."""
    if not is_sharded(tensor):
        return None
    sharded: Any = tensor
    return id(sharded.device_mesh), sharded.placements, tuple(sharded.shape)


@dataclass(frozen=True, slots=True)
class Held:
    """The box that this rank holds of a global tensor, and what makes a DTensor of it (no mesh: it stays plain)."""

    spec: Spec
    box: Box
    mesh: Any = None
    placements: tuple[Any, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def text(self) -> list[str]:
        """The placements, for people."""
        return [str(placement) for placement in self.placements]

    def made(self, local: torch.Tensor) -> torch.Tensor:
        """The tensor of which this rank has `local`."""
        if self.mesh is None:
            return local
        from torch.distributed.tensor import DTensor

        # The shape and the stride are given: with uneven shards they do not follow from this rank's part.
        return DTensor.from_local(
            local,
            self.mesh,
            self.placements,
            run_check=False,
            shape=torch.Size(self.spec.shape),
            stride=self.stride,
        )

    def like(self, spec: Spec) -> Held:
        """A tensor of `spec` that belongs to this one, as an optimizer's state to its parameter: cut in the same
        dimensions, as far as these have the same size."""
        shape = spec.shape
        if len(shape) == len(self.spec.shape):
            same = [a == b for a, b in zip(shape, self.spec.shape, strict=True)]
        else:
            same = [False] * max(len(shape), len(self.spec.shape))
        from torch.distributed.tensor import Replicate

        placements = tuple(p if p.is_replicate() or same[p.dim] else Replicate() for p in self.placements)
        box = box_of(shape, self.mesh, placements, "")
        return Held(spec, box, self.mesh, placements, _contiguous(shape))


def held(tensor: torch.Tensor, path: str) -> Held:
    """What this rank holds of the DTensor `tensor`. StateError names `path` if a checkpoint cannot hold it."""
    sharded: Any = tensor
    local = local_of(tensor)
    if type(local) is not torch.Tensor and hasattr(local, "wait"):
        raise StateError(f"{path} is still on its way from other ranks: wait for it before the save")
    spec = tensors.spec_of(local, path)
    box = box_of(sharded.shape, sharded.device_mesh, sharded.placements, path)
    if tuple(local.shape) != box.size:
        raise StateError(
            f"{path} has {list(local.shape)} on this rank, and by its placements {sharded.placements} it should have "
            f"{list(box.size)} of {list(sharded.shape)}: which part of it that is cannot be told"
        )
    whole = Spec(spec.dtype, tuple(sharded.shape))
    return Held(whole, box, sharded.device_mesh, tuple(sharded.placements), tuple(sharded.stride()))


def box_of(shape: Sequence[int], mesh: Any, placements: Sequence[Any], path: str) -> Box:
    """The box that this rank holds of a DTensor. StateError names `path` if it is not one box of values."""
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise StateError(f"{path} is on a mesh of which this rank is no part: nothing of it can be saved here")
    kept: list[Runs] = [[(0, n)] for n in shape]
    for number, placement in enumerate(placements):
        if placement.is_replicate():
            continue
        dim = getattr(placement, "dim", None)
        if placement.is_partial() or not isinstance(dim, int):
            raise StateError(
                f"{path} is a DTensor with the placement {placement}: each rank has a summand of it, not a part; "
                "redistribute it to Shard or Replicate"
            )
        parts = int(getattr(placement, "split_factor", 1))
        kept[dim] = _chunk(kept[dim], mesh.size(number), coordinate[number], parts)
    size = tuple(sum(last - first for first, last in runs) for runs in kept)
    if 0 in size:
        return Box(tuple(whole - n for whole, n in zip(shape, size, strict=True)), size)
    found = [_one_run(runs) for runs in kept]
    if any(run is None for run in found):
        raise StateError(
            f"{path} is a DTensor with the placements {tuple(placements)}: what a rank has of it is not one box, and "
            "only boxes can be saved"
        )
    return Box(tuple(run[0] for run in found if run is not None), size)


def _chunk(runs: Runs, chunks: int, index: int, parts: int) -> Runs:
    """Chunk number `index` of the indices `runs`; of `parts` parts of them, that chunk of each."""
    total = sum(last - first for first, last in runs)
    found: Runs = []
    for part in range(parts):
        start, end = _bounds(total, parts, part)
        first, last = _bounds(end - start, chunks, index)
        found += _taken(runs, start + first, start + last)
    return found


def _bounds(total: int, chunks: int, index: int) -> tuple[int, int]:
    """Where torch.chunk begins and ends a chunk."""
    size = -(-total // chunks)
    return min(total, size * index), min(total, size * (index + 1))


def _taken(runs: Runs, first: int, last: int) -> Runs:
    """The indices from number `first` to number `last` (exclusive) of `runs`."""
    found, at = [], 0
    for start, end in runs:
        a, b = max(first, at), min(last, at + end - start)
        if a < b:
            found.append((start + a - at, start + b - at))
        at += end - start
    return found


def _one_run(runs: Runs) -> tuple[int, int] | None:
    """`runs` as one; None if there are gaps in them."""
    if any(a[1] != b[0] for a, b in itertools.pairwise(runs)):
        return None
    return runs[0][0], runs[-1][1]


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        strides[axis - 1] = strides[axis] * max(1, shape[axis])
    return tuple(strides)
