"""The plan of a save: which rank writes which box of which tensor. Ranks that hold the same box share its bytes.

    held by all ranks, by element size:   |---- a ----|-- b --|c|------ d ------|
    ranks:                                |------- 0 -------|-------- 1 --------|     cuts where a share ends

A tensor is cut between rows, so that each part is a box again, and a rank has one part of a tensor at most. The plan is
a pure function of what the ranks hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from .boxes import Box, cut, rows_of, whole

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1,
}  # fmt: skip
"""Bytes per element of each type that can be stored, by its name in safetensors."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor's type and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * ITEM_BYTES[self.dtype]


def total(tensors: Mapping[str, Spec]) -> int:
    """The bytes of all `tensors` together."""
    return sum(spec.bytes for spec in tensors.values())


@dataclass(frozen=True, slots=True)
class Share:
    """The part `box` of the global tensor `name`. A rank that holds it has it in the `count` elements from `start` on
    of its own, flattened tensor."""

    name: str
    start: int
    count: int
    box: Box


Shares = tuple[tuple[Share, ...], ...]
"""For each rank, the shares that it writes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The global tensors by name, and the shares of each rank."""

    specs: Mapping[str, Spec]
    shares: Shares
    placements: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """How those that are DTensors lie on their mesh: a hint for people, and for a state without a live tensor."""


def plan(
    tensors: Mapping[str, Spec], world_size: int, led: Set[str] = frozenset(), among: Sequence[int] | None = None
) -> Layout:
    """The layout of tensors that every rank holds whole. Rank 0 writes the tensors in `led`, the ranks `among` them
    (None: all) the others. These differ by less than the bytes of one row per cut."""
    everyone = tuple(range(world_size)) if among is None else tuple(among)
    held = {name: {whole(spec.shape): (0,) if name in led else everyone} for name, spec in tensors.items()}
    return shared_out(tensors, held, world_size)


def shared_out(specs: Mapping[str, Spec], held: Mapping[str, Mapping[Box, Sequence[int]]], world_size: int) -> Layout:
    """The layout in which each box in `held` (by tensor) is written by those ranks that hold it."""
    groups: dict[tuple[int, ...], list[tuple[str, Box]]] = {}
    # Wide elements come first: then every offset in a file is a multiple of its element's size.
    for name in sorted(specs, key=lambda name: -ITEM_BYTES[specs[name].dtype]):
        for box, holders in held[name].items():
            groups.setdefault(tuple(holders), []).append((name, box))
    shares: list[list[Share]] = [[] for _ in range(world_size)]
    for holders, items in groups.items():
        for rank, own in zip(holders, _divided(items, specs, len(holders)), strict=True):
            shares[rank] += own
    for own in shares:
        own.sort(key=lambda share: -ITEM_BYTES[specs[share.name].dtype])
    return Layout(specs, tuple(map(tuple, shares)))


def _divided(items: Sequence[tuple[str, Box]], specs: Mapping[str, Spec], parts: int) -> list[list[Share]]:
    """`items` cut into `parts` of nearly equal bytes, in order."""
    sizes = [box.volume * ITEM_BYTES[specs[name].dtype] for name, box in items]
    shares: list[list[Share]] = [[] for _ in range(parts)]
    part, done, everything = 0, 0, sum(sizes)
    for name, box in items:
        _, rows, length = rows_of(box.size)
        row = length * ITEM_BYTES[specs[name].dtype]
        start = 0
        while True:
            room = everything * (part + 1) // parts - done
            # To the nearest row: neither a row too many nor one too few.
            most = rows if part == parts - 1 or not row else (room + row // 2) // row
            count = min(max(most, 0), rows - start)
            if count or not rows:
                kept = cut(box, start, start + count) if rows else box
                shares[part].append(Share(name, start * length, count * length, kept))
            start += count
            done += count * row
            if start >= rows:
                break
            part += 1
    return shares
