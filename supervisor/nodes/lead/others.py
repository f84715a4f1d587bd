"""The other nodes of a run, as the driver asks for them. A run on one node has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from supervisor.core.actions import Reach
from supervisor.core.machine import Mode
from supervisor.core.model import Observation
from supervisor.core.telling.news import News
from supervisor.group.seat import Seats


class Others(Protocol):
    """The nodes beside this one, which leads."""

    seats: Seats | None
    """None: this node is alone."""

    def world(self, nproc: int) -> int:
        """The number of ranks of the attempt, if this node has `nproc`."""

    def pids(self) -> set[int]:
        """Processes of ours that belong to no attempt."""

    def fds(self) -> list[int]:
        """The descriptors that are readable when there is something for tick()."""

    def tick(self) -> None:
        """All that has come from other nodes is known."""

    def merge(self, seen: Observation, news: News, now: float) -> tuple[Observation, News]:
        """What all nodes see and tell, as of `now`, with what this node sees."""

    def launch(self, number: int, nodes: tuple[int, ...]) -> None:
        """The attempt `number` has begun, on these nodes. Their groups are released with this node's."""

    def released(self) -> dict[str, Any]:
        """The group of the attempt was released. Later groups are for the next one. Returns what to tell of it."""

    def state(self, mode: Mode, stepped: bool, silent: Mapping[int, float]) -> None:
        """The other nodes know what is thought of the attempt."""

    def send(self, name: str, reach: Reach) -> None:
        """They send the signal to their processes of the attempt."""

    def dump(self, now: float) -> bool:
        """They dump the stacks of their ranks. Whether stacks will come with what they see."""

    def ask_faults(self) -> None:
        """Their ranks look for new faults."""

    def end(self, exit_code: int, reason: str, keep: bool) -> None:
        """They know that the run is over. With `keep`, the snapshots in memory stay."""


class Alone:
    """There are no others."""

    seats = None

    def world(self, nproc: int) -> int:
        return nproc

    def pids(self) -> set[int]:
        return set()

    def fds(self) -> list[int]:
        return []

    def tick(self) -> None:
        pass

    def merge(self, seen: Observation, news: News, now: float) -> tuple[Observation, News]:
        return seen, news

    def launch(self, number: int, nodes: tuple[int, ...]) -> None:
        pass

    def released(self) -> dict[str, Any]:
        return {}

    def state(self, mode: Mode, stepped: bool, silent: Mapping[int, float]) -> None:
        pass

    def send(self, name: str, reach: Reach) -> None:
        pass

    def dump(self, now: float) -> bool:
        return False

    def ask_faults(self) -> None:
        pass

    def end(self, exit_code: int, reason: str, keep: bool) -> None:
        pass
