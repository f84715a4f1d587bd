"""The part that one node has of a worker group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from trainer.rundir.records.gate import Release


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


class Elsewhere(Protocol):
    """The parts of a group on the other nodes."""

    @property
    def parked(self) -> bool:
        """Whether all their ranks wait at their gates."""

    @property
    def lost(self) -> str:
        """Why they cannot be used any more, or empty."""

    @property
    def unfit(self) -> bool:
        """Whether they are lost because they could not wait where they should."""

    def release(self, body: Release) -> None:
        """Their ranks go on as the attempt of `body`."""

    def drop(self) -> None:
        """They are given up, unless they were released."""


Seats = Callable[[Release | None], tuple[Seat, Elsewhere | None]]
"""Orders the parts of a new group on the other nodes, and tells the part of this one. The ranks expect that release:
they wait in restore(). None: at the first line."""
