"""The mark of a value that each rank has its own of. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PerRank:
    """`value` is this rank's alone: it comes back on the rank of the same number. It may stand anywhere in `extra`, or
    in the state of a part.

    On another number of ranks `reshard(values, rank, world_size)` returns the value of a rank; `values` are those of
    all ranks that saved. Without it, such a restore is refused, unless the Checkpointer has on_resize="reset".
    """

    value: Any
    reshard: Callable[[list[Any], int, int], Any] | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """Stands in a loaded state where a marked value was."""

    path: str
