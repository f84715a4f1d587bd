"""The part that one node has of a worker group."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seat:
    """A group has `sizes[i]` ranks on its node i, in the order of their numbers. This is its node `node`."""

    sizes: tuple[int, ...]
    node: int = 0
    host: str = ""
    """The address of node 0, where all ranks meet. Empty for a group on one node."""
    port: int = 0

    @property
    def nproc(self) -> int:
        """The number of ranks here."""
        return self.sizes[self.node]

    @property
    def world(self) -> int:
        """The number of all ranks."""
        return sum(self.sizes)

    @property
    def ranks(self) -> range:
        """The ranks here."""
        first = sum(self.sizes[: self.node])
        return range(first, first + self.nproc)
