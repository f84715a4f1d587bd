"""Where two checkpoints differ, and by how much: `start.py checkpoint.transfer.difference A B` writes it as JSON.

One tensor at a time is read of each, verified, and compared in parts.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..disk import store
from ..disk.assembly import assemble
from ..disk.restore import load
from ..errors import CheckpointError, StateError
from ..format.manifest import Manifest
from ..state import tree
from ..state.values.records import inside

_PART = 1 << 22
"""The elements that are compared at once."""


def tensor_of(path: Path, manifest: Manifest, name: str) -> torch.Tensor:
    """The tensor `name` of the checkpoint `path`, verified."""
    only = replace(manifest, state={"it": {"$tensor": name}}, tensors={name: manifest.tensors[name]})
    read = functools.partial(store.read_file, path, manifest)
    found: torch.Tensor = assemble(path.name, only, -1, read).shared["it"]
    return found


def difference(a: torch.Tensor, b: torch.Tensor) -> dict[str, Any] | None:
    """How `a` and `b` differ; None if they are equal to the bit."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return {"a": _kind(a), "b": _kind(b)}
    count, largest, unlike = 0, 0.0, 0
    a, b = a.reshape(-1), b.reshape(-1)
    size = a.element_size()
    for start in range(0, a.numel(), _PART):
        one, two = a[start : start + _PART].contiguous(), b[start : start + _PART].contiguous()
        bits = (one.view(torch.uint8) != two.view(torch.uint8)).reshape(-1, size).any(1)
        if not bool(bits.any()):
            continue
        count += int(bits.sum())
        wide = torch.complex128 if a.is_complex() else torch.float64
        far = (one[bits].to(wide) - two[bits].to(wide)).abs()
        unlike += int((~torch.isfinite(far)).sum())
        largest = max(largest, float(torch.nan_to_num(far, nan=0.0, posinf=0.0).max()))
    if not count:
        return None
    told: dict[str, Any] = {"elements": count, "of": a.numel(), "largest": largest}
    return {**told, "not_finite": unlike} if unlike else told


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return repr(value)[:80]


def _text(value: Any) -> str:
    try:
        return json.dumps(tree.encode(value))
    except StateError:  # a dataclass that is not loaded here
        return repr(value)


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """What a state holds, by path; only what holds nothing more."""
    items = inside(value) if not isinstance(value, torch.Tensor) else []
    if not items:
        yield path, value
    for key, inner in items:
        yield from leaves(inner, f"{path}/{key}" if path else str(key))


class _Named(str):
    """The name of a tensor that is compared by itself."""


def _others(path: Path, manifest: Manifest) -> dict[str, Any]:
    """All but the shared tensors: values of the state, and what each rank has of its own."""
    found = dict(leaves(_shared(manifest), ""))
    for rank in range(manifest.world_size):
        own = load(path, rank, wanted=lambda part: False).own
        found.update(leaves(own, f"rank{rank}"))
    return {name: value for name, value in found.items() if not isinstance(value, _Named)}


def _shared(manifest: Manifest) -> Any:
    return tree.decode(manifest.state, _Named)


def differences(one: Path, two: Path) -> Iterator[dict[str, Any]]:
    """Each difference of the checkpoints `one` and `two`, by name. CheckpointError if one cannot be read."""
    a, b = store.check(one), store.check(two)
    for name in sorted({*a.tensors, *b.tensors}):
        if name not in a.tensors or name not in b.tensors:
            yield {"name": name, "only": "a" if name in a.tensors else "b"}
        elif found := difference(tensor_of(one, a, name), tensor_of(two, b, name)):
            yield {"name": name, **found}
    yield from _values(_others(one, a), _others(two, b))


def _values(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name in sorted({*a, *b}):
        if name not in a or name not in b:
            yield {"name": name, "only": "a" if name in a else "b"}
        elif isinstance(a[name], torch.Tensor) and isinstance(b[name], torch.Tensor):
            if found := difference(a[name], b[name]):
                yield {"name": name, **found}
        elif type(a[name]) is not type(b[name]) or _text(a[name]) != _text(b[name]):
            yield {"name": name, "a": _kind(a[name]), "b": _kind(b[name])}


def main(arguments: list[str]) -> int:
    try:
        for found in differences(*map(Path, arguments)):
            print(json.dumps(found), flush=True)
    except (CheckpointError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
