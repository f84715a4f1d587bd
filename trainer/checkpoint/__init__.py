"""Checkpoints that cannot be torn. To list, verify and prune them needs no torch; this package imports none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    CheckpointError,
    CheckpointMismatch,
    Damaged,
    NoUsableCheckpoint,
    StateError,
    Unreadable,
)
from .state.marks import PerRank

if TYPE_CHECKING:
    from .checkpointer import Checkpointer
    from .partly import load
    from .plain import load_checkpoint, save_checkpoint
    from .sharded.slices import Shard
    from .state.values.samples import Seeded

__all__ = [
    "CheckpointError",
    "CheckpointMismatch",
    "Checkpointer",
    "Damaged",
    "NoUsableCheckpoint",
    "PerRank",
    "Seeded",
    "Shard",
    "StateError",
    "Unreadable",
    "load",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    # The supervisor imports this package and must not pay for torch. A caller of these has loaded it already.
    if name == "Checkpointer":
        from .checkpointer import Checkpointer

        return Checkpointer
    if name == "load":
        from .partly import load

        return load
    if name == "Shard":
        from .sharded.slices import Shard

        return Shard
    if name == "Seeded":
        from .state.values.samples import Seeded

        return Seeded
    if name in ("save_checkpoint", "load_checkpoint"):
        from . import plain

        return getattr(plain, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
