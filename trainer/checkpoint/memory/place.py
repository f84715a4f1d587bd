"""Where the snapshots of a rank are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..nodes.nodes import Nodes


@dataclass(frozen=True, slots=True)
class Place:
    """The run, attempt and rank of the snapshots, and their place."""

    folder: Path
    rank: int
    world_size: int
    attempt: int
    run: str | None
    nodes: Nodes | None = None
    """Where all ranks are; None: on this node."""

    @property
    def here(self) -> int:
        """The number of ranks on this node."""
        return len(self.nodes.beside(self.rank)) if self.nodes is not None and self.nodes.several else self.world_size

    def too_small(self, size: int, ring: bool, whole: bool) -> str:
        """What is wrong if it has no room for snapshots of `size` bytes a rank, and what to do. `ring` and `whole`: see
        Memory and Planner."""
        # In a ring: three buffers for each of two nodes' ranks, and once the whole state, for a restore.
        files = 6 * self.here + self.world_size if ring else 3 * (self.world_size if whole else self.here)
        needed = files * size / 2**20 + 16
        return (
            f"{self.folder.parent} is too small for them, they need {needed:.0f} MB there; "
            f"in Docker give --shm-size={math.ceil(needed / 64) * 64}m"
        )
