"""Who writes which box of which tensor. The ranks of a run agree on it, and need to no more until a tensor changes.

    no rank has a part only   each rank plans by itself: all have the same tensors
    some are sharded          exchange a digest of what each holds; if one is new: exchange what each holds

Names, types, shapes and boxes count, not addresses: a layout stays for the whole run, as a rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from ...rundir.files.codec import encode
from ..errors import StateError
from ..format.boxes import Box, check_cover, whole
from ..format.plan import Layout, Spec, plan, shared_out
from ..group import Ranks
from ..state.packing import Packed
from .slices import Slices


def held_by(shared: Packed) -> dict[str, Any]:
    """What this rank holds of each tensor: type, global shape, the corner and the size of its box, its placements."""
    found: dict[str, Any] = {}
    for name, spec in shared.specs.items():
        if (held := shared.placed.get(name)) is not None:
            found[name] = [spec.dtype, held.spec.shape, held.box.at, held.box.size, held.text]
        else:
            found[name] = [spec.dtype, spec.shape, (0,) * len(spec.shape), spec.shape, []]
    return found


class Layouts:
    """The layout of one run, as its ranks have agreed on it."""

    def __init__(self, slices: Slices | None = None) -> None:
        self.slices = slices or Slices()
        self._digests: list[str] = []
        self._layout: Layout | None = None
        """The layout of a sharded state; None for one that all ranks hold whole."""
        self._planned: tuple[Packed | None, Layout | None] = (None, None)
        self.sharers: Mapping[str, tuple[int, ...]] = {}
        """The ranks that hold the same box as this one, by sharded tensor. None of those with an empty box."""

    @property
    def is_sharded(self) -> bool:
        """Whether any rank has a part only, as far as the ranks have agreed."""
        return self._layout is not None

    def agree(self, shared: Packed, ranks: Ranks) -> Layout:
        """The layout of `shared`. StateError, the same on every rank, if what the ranks hold does not fit together.
        All ranks call it at the same step."""
        mine = xxhash.xxh3_128_hexdigest(encode([held_by(shared), sorted(shared.led)])) if shared.placed else ""
        digests = ranks.exchange(mine)
        if not any(digests):
            self._digests, self._layout, self.sharers = digests, None, {}
        elif self._layout is None or digests != self._digests:
            tables = ranks.exchange(held_by(shared))
            layout, holders = _agreed(tables, shared.led)
            self._digests, self._layout = digests, layout
            self.sharers = {
                name: tuple(holders[name][held.box])
                for name, held in shared.placed.items()
                if held.box in holders[name]
            }
        self._planned = (None, None)
        found = self.known(shared, ranks.rank, ranks.world_size)
        assert found is not None
        return found

    def known(self, shared: Packed, rank: int, world_size: int) -> Layout | None:
        """The layout of `shared`, found by `rank` alone; None if the ranks must agree on one first."""
        planned, layout = self._planned
        if planned is not None and planned.specs is shared.specs and planned.led == shared.led:
            return layout
        if not shared.placed:
            layout = None if self._layout else plan(shared.specs, world_size, shared.led)
        elif self._layout is None:
            return None
        else:
            mine = xxhash.xxh3_128_hexdigest(encode([held_by(shared), sorted(shared.led)]))
            layout = self._layout if mine == self._digests[rank] else None
        self._planned = (shared, layout) if layout else (None, None)
        return layout


def _agreed(tables: Sequence[Mapping[str, Any]], led: frozenset[str]) -> tuple[Layout, dict[str, dict[Box, list[int]]]]:
    """The layout of what the ranks hold, and for each box of each tensor the ranks that hold it."""
    specs: dict[str, Spec] = {}
    texts: dict[str, list[str]] = {}
    holders: dict[str, dict[Box, list[int]]] = {}
    for rank, table in enumerate(tables):
        for name, (dtype, shape, at, size, text) in table.items():
            if rank and name in led:
                continue  # each rank has its own of it, of its own length; rank 0's is the one that all share
            spec = Spec(dtype, tuple(shape))
            if specs.setdefault(name, spec) != spec:
                raise StateError(
                    f"{name} is {_described(specs[name])} on some ranks, and {_described(spec)} on rank {rank}: all "
                    "ranks must have parts of the same tensor"
                )
            texts.setdefault(name, text)
            box = Box(tuple(at), tuple(size))
            if box.volume or box == whole(spec.shape):
                holders.setdefault(name, {}).setdefault(box, []).append(rank)
    for name, spec in specs.items():
        try:
            check_cover(list(holders.get(name, ())), spec.shape)
        except ValueError as error:
            raise StateError(f"{name}: the parts that the ranks have of it do not make it up: {error}") from None
    layout = shared_out(specs, holders, len(tables))
    return Layout(layout.specs, layout.shares, {name: text for name, text in texts.items() if text}), holders


def _described(spec: Spec) -> str:
    return f"{list(spec.shape)} {spec.dtype}"
