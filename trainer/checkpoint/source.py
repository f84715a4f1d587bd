"""The state of this rank as it is now: what a save or a snapshot takes, and what the ranks compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .format.plan import Layout, Spec
from .group import Ranks
from .replicas import Replicas
from .sharded.layouts import Layouts
from .sharded.slices import Slices
from .state.packing import Packed, pack
from .state.per_rank import buffers_of
from .state.state import Stateful, capture, capture_own, capture_rank

Extra = dict[str, Any] | Callable[[], dict[str, Any]] | None


class Source:
    """The state of `parts` and `extra` on this rank."""

    def __init__(self, parts: Mapping[str, Stateful], extra: Extra, replicas: Replicas, slices: Slices) -> None:
        self._parts, self._extra, self.replicas, self.layouts = parts, extra, replicas, Layouts(slices)

    def _pack(self, state: Any) -> Packed:
        return pack(state, slices=self.layouts.slices.held)

    def extra(self) -> dict[str, Any]:
        """What `extra` gives now."""
        return (self._extra() if callable(self._extra) else self._extra) or {}

    def led(self, specs: Mapping[str, Spec]) -> frozenset[str]:
        """Those of the replicated tensors of `specs` that each rank has its own of."""
        if not self.replicas.several:
            return frozenset()
        return buffers_of(self._parts.get("model"), specs, self.replicas.differing)

    def shared(self, step: int) -> Packed:
        shared = capture(self._parts, step, self.extra(), self._pack)
        return replace(shared, led=self.led(shared.replicated))

    def is_sharded(self) -> bool:
        """Whether this rank has a box only of some tensor of its parts."""
        return bool(capture(self._parts, 0, {}, self._pack).placed)

    def whole(self, step: int, rank: int, compared: Packed | None = None) -> tuple[Packed, Packed]:
        """(shared, own) after `step` steps. StateError if a checkpoint cannot hold it. `compared`: the shared state, if
        it was compared just now."""
        shared = self.shared(step) if compared is None else compared
        return shared, capture_rank(rank, own=capture_own(rank, shared, self._parts))

    def layout(self, shared: Packed, ranks: Ranks, compared: Packed | None) -> Layout:
        """The layout of `shared`. The ranks need not agree on it if it is the state that was `compared` just now. All
        ranks call it."""
        known = None if compared is None else self.layouts.known(shared, ranks.rank, ranks.world_size)
        return known or self.layouts.agree(shared, ranks)

    def compare(self, step: int) -> tuple[bool, Packed | None]:
        """All ranks have the same state after `step` steps, or StateError or ReplicasDiffer is raised. Returns whether
        the tensors that each rank has its own of have become more; if not, the state that was compared, if it was. All
        ranks call it at the same step."""
        if not self.replicas.compares or self.replicas.equal_at == step:
            return False, None
        began = time.monotonic()
        shared = self.shared(step)
        buffers = buffers_of(self._parts.get("model"), shared.replicated, frozenset(shared.specs))
        new = self.replicas.compare(shared, step, buffers, self.layouts, began)
        return new, None if new else shared  # which tensors these are is a part of the state, too
