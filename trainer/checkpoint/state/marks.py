"""The mark of a value that belongs to one rank. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class PerRank:
    """`value` belongs to this rank alone. It comes back on the rank of the same number. It may be anywhere in `extra`,
    or in the state of a part.

    On another number of ranks `reshard(values, rank, world_size)` returns the value of a rank. `values` are those of
    all ranks that saved. Without it, such a restore is refused, unless the Checkpointer has on_resize="reset".
    """

    value: Any
    reshard: Callable[[list[Any], int, int], Any] | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """Replaces a marked value in a loaded state."""

    path: str
