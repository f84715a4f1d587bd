"""Which ranks are on which node. The ranks of a node have the same shared memory; those of another node cannot see it.

rank   0  1 | 2  3 | 4  5       two nodes keep the state: a kept snapshot is whole on each of them
node     0  |  1   |  2         keepers: 0 and 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Nodes:
    """The node of each rank, by rank. Nodes are numbered in the order of their first ranks."""

    of: tuple[int, ...] = (0,)

    @property
    def several(self) -> bool:
        return max(self.of) > 0

    def ranks(self, node: int) -> tuple[int, ...]:
        """The ranks on that node, in order."""
        return tuple(rank for rank, own in enumerate(self.of) if own == node)

    def beside(self, rank: int) -> tuple[int, ...]:
        """The ranks on the node of `rank`, itself among them."""
        return self.ranks(self.of[rank])

    def leads(self, rank: int) -> bool:
        """Whether `rank` acts for its node, where one must."""
        return self.of.index(self.of[rank]) == rank


def numbered(memories: Sequence[str]) -> Nodes:
    """The nodes of ranks that have these shared memories, by rank."""
    numbers = {memory: number for number, memory in enumerate(dict.fromkeys(memories))}
    return Nodes(tuple(numbers[memory] for memory in memories))
