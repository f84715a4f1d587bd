"""Where the snapshots of a rank are."""

from __future__ import annotations

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
