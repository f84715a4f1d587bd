"""The plan of a save: replicated tensors are cut into pieces, and each rank writes an equal part of the bytes.

    tensors, by element size:   |---- a ----|-- b --|c|------ d ------|
    pieces:                     |--a0--|-a1-|--b0---|c|--d0--|---d1---|
    ranks:                      |------- 0 -------|-------- 1 --------|     cuts a piece where a share ends

It is a pure function of the tensors' types and shapes, so every rank computes the same plan without communication.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

PIECE_BYTES = 32 << 20

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
    """`count` elements of the tensor `name`, flattened, from element `start`."""

    name: str
    start: int
    count: int

    def key(self, spec: Spec) -> str:
        """The name of this share in its rank's file; a whole tensor keeps its own."""
        return self.name if self.count == spec.count else f"{self.name}@{self.start}"


Shares = tuple[tuple[Share, ...], ...]
"""For each rank, the shares that it writes."""


def plan(
    tensors: Mapping[str, Spec], world_size: int, piece_bytes: int = PIECE_BYTES, led: Set[str] = frozenset()
) -> Shares:
    """For each rank, the shares that it writes. Every element is in exactly one share. Rank 0 writes the tensors in
    `led`. Otherwise ranks differ by less than the bytes of one element per cut. No share is larger than `piece_bytes`
    (or one element)."""
    if led:
        return _led(tensors, world_size, piece_bytes, led)
    # Wide elements come first: then every offset in a file is a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: -ITEM_BYTES[item[1].dtype])
    total = sum(spec.bytes for _, spec in ordered)
    shares: list[list[Share]] = [[] for _ in range(world_size)]
    rank, done = 0, 0
    for name, spec in ordered:
        size = ITEM_BYTES[spec.dtype]
        start = 0
        while True:
            while rank < world_size - 1 and done >= total * (rank + 1) // world_size:
                rank += 1
            room = total * (rank + 1) // world_size - done
            most = max(1, min(piece_bytes // size, -(-room // size)))
            count = min(most, spec.count - start)
            shares[rank].append(Share(name, start, count))
            start += count
            done += count * size
            if start >= spec.count:
                break
    return tuple(tuple(share) for share in shares)


def _led(tensors: Mapping[str, Spec], world_size: int, piece_bytes: int, led: Set[str]) -> Shares:
    ahead = plan({name: spec for name, spec in tensors.items() if name in led}, 1, piece_bytes)[0]
    rest = plan({name: spec for name, spec in tensors.items() if name not in led}, world_size, piece_bytes)
    first = sorted([*ahead, *rest[0]], key=lambda share: -ITEM_BYTES[tensors[share.name].dtype])
    return (tuple(first), *rest[1:])
