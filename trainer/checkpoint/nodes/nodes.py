"""Which ranks are on which node. The ranks of a node have the same shared memory; those of another node cannot see it.

rank   0  1 | 2  3 | 4  5       two nodes keep the state: a kept snapshot is whole on each of them
node     0  |  1   |  2         keepers: 0 and 1
in a ring:  4 5   0 1   2 3     each node keeps the files of the one before it, too: any one may go
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Nodes:
    """The node of each rank, by rank, if there are several. Nodes are numbered in the order of their first ranks."""

    of: tuple[int, ...] = (0,)
    ring: bool = False
    """Whether no node has the whole state: each keeps what its own ranks have, and those of the node before it."""

    @property
    def several(self) -> bool:
        return self.count > 1

    @property
    def count(self) -> int:
        return max(self.of) + 1

    def ranks(self, node: int) -> tuple[int, ...]:
        """The ranks on that node, in order."""
        return tuple(rank for rank, own in enumerate(self.of) if own == node)

    def beside(self, rank: int) -> tuple[int, ...]:
        """The ranks on the node of `rank`, itself among them."""
        return self.ranks(self.of[rank])

    @property
    def keepers(self) -> tuple[int, ...]:
        """The nodes on which a snapshot is whole. One of two may go. More would only cost more."""
        return (0, 1) if self.several else (0,)

    def keeps(self, rank: int) -> bool:
        """Whether the node of `rank` keeps more of the state than what its ranks alone have."""
        return self.ring or self.of[rank] in self.keepers

    def twins(self, rank: int) -> tuple[int, ...]:
        """The ranks that keep what `rank` alone has: one on each keeper that is not its own node; in a ring, one on the
        next node."""
        own = self.of[rank]
        keepers = ((own + 1) % self.count,) if self.ring else self.keepers
        there = [self.ranks(node) for node in keepers if node != own]
        return tuple(ranks[rank % len(ranks)] for ranks in there)

    def kept_by(self, rank: int) -> tuple[int, ...]:
        """The ranks of other nodes whose own part `rank` keeps."""
        return tuple(other for other in range(len(self.of)) if rank in self.twins(other))

    def leads(self, rank: int) -> bool:
        """Whether `rank` acts for its node, where one must."""
        return self.of.index(self.of[rank]) == rank


def numbered(memories: Sequence[str]) -> Nodes:
    """The nodes of ranks that have these shared memories, by rank."""
    numbers = {memory: number for number, memory in enumerate(dict.fromkeys(memories))}
    return Nodes(tuple(numbers[memory] for memory in memories))
