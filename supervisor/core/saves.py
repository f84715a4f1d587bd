"""What the journals of an attempt's ranks say of the script's own saves, a line at a time. Pure; takes any garbage.

A save that was begun and neither done nor failed is under way while its attempt lives, and torn when that is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_MOST_UNDER_WAY = 64
"""Saves of one rank that are followed at once; of more the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class Save:
    """One save of one rank. `step` is true, or -1 where that is not known."""

    rank: int
    number: int
    path: str
    step: int
    at: float
    size: int = -1
    took: float = 0.0


@dataclass(frozen=True, slots=True)
class Saves:
    """All that is kept of an attempt's journals."""

    newest: Save | None = None
    """The one that was done last."""
    step: int = -1
    """The highest true step of those that are done, or -1."""
    unplaced: bool = False
    """Whether one was done whose step is not known."""
    under_way: Mapping[tuple[int, int], Save] = field(default_factory=dict)
    """By rank and number, those that were begun and have not ended."""

    def torn(self) -> list[Save]:
        """What an attempt that is over has left half written, one for each path; not what was whole again later."""
        left = {save.path: save for save in self.under_way.values()}
        return [save for _, save in sorted(left.items())]


def hear(saves: Saves, rank: int, line: Mapping[str, Any]) -> Saves:
    """`saves` with a line of the journal of `rank`."""
    kind, path, number = line.get("kind"), line.get("path"), line.get("n")
    if not isinstance(path, str) or type(number) is not int:
        return saves
    step, at = _whole(line, "step"), _seconds(line, "mono")
    if kind == "save_begun":
        mine = [key for key in saves.under_way if key[0] == rank]
        gone = mine[: max(0, len(mine) + 1 - _MOST_UNDER_WAY)]
        kept = {key: save for key, save in saves.under_way.items() if key not in gone}
        return replace(saves, under_way={**kept, (rank, number): Save(rank, number, path, step, at)})
    if kind not in ("save_done", "save_failed"):
        return saves
    left = {key: save for key, save in saves.under_way.items() if key != (rank, number)}
    saves = replace(saves, under_way=left)
    if kind == "save_failed":
        return saves
    took = max(0.0, at - _seconds(line, "began")) if "began" in line else 0.0
    done = Save(rank, number, path, step, at, _whole(line, "size"), took)
    newest = done if saves.newest is None or at >= saves.newest.at else saves.newest
    return replace(saves, newest=newest, step=max(saves.step, step), unplaced=saves.unplaced or step < 0)


def _whole(line: Mapping[str, Any], key: str) -> int:
    value = line.get(key)
    return value if type(value) is int and value >= 0 else -1


def _seconds(line: Mapping[str, Any], key: str) -> float:
    value = line.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
