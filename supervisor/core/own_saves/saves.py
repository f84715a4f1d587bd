"""The script's own saves, read from the journals of an attempt's ranks, line by line. Pure; any garbage is accepted.

A save that has begun and neither finished nor failed is under way while its attempt lives. When the attempt is over, it
has failed. A folder that several ranks save into is whole when each of them has finished its newest save into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

_MOST_UNDER_WAY = 64
"""The most saves of one rank that are followed at once. Older ones are forgotten."""
_MOST_PATHS = 64
"""The most folders that are followed at once, and the most paths of finished saves that are kept."""
_MOST_BESIDE = 1000


@dataclass(frozen=True, slots=True)
class Save:
    """One save of one rank. `step` is the true step, or -1 if it is unknown."""

    rank: int
    number: int
    path: str
    step: int
    at: float
    size: int = -1
    took: float = 0.0
    beside: bool = False
    """Whether it is written beside the old file, so that a kill does not harm the old file."""
    ranks: int = 0
    """For a folder: the number of ranks that save into it. 0 for a file."""
    within: str | None = None
    """For a file: the folder that it is a part of."""
    how: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """The known saves into one folder."""

    newest: Save
    """The save that began last."""
    begun: Mapping[int, int] = field(default_factory=dict)
    """By rank: the number of saves into it that have begun."""
    done: Mapping[int, int] = field(default_factory=dict)
    """By rank: the number of the last save that is done."""
    beside: int = 0
    """The number of the last save that is written beside as a whole. The old content stays until that save is done."""

    @property
    def whole(self) -> bool:
        """Whether the folder is whole. Every rank that should save into it, and every other that began, is done with
        its newest save."""
        newest = max(self.begun.values())
        ended = all(self.done.get(rank) == number for rank, number in self.begun.items())
        return ended and sum(number == newest for number in self.done.values()) >= self.newest.ranks


@dataclass(frozen=True, slots=True)
class Saves:
    """The kept content of an attempt's journals."""

    newest: Save | None = None
    """The save that was done last."""
    step: int = -1
    """The highest true step of the saves that are done, or -1."""
    unplaced: bool = False
    """Whether a save was done whose step is not known."""
    under_way: Mapping[tuple[int, int], Save] = field(default_factory=dict)
    """By rank and number: the saves that have begun and have not ended."""
    folders: Mapping[str, Folder] = field(default_factory=dict)
    """By path: the folders that are saved into. The last begun are at the end."""
    done: Mapping[str, Save] = field(default_factory=dict)
    """By path: its newest save that is done. The last done are at the end. Parts of a folder are left out."""
    beside: frozenset[str] = frozenset()
    """Folders in which files are written beside old files."""

    def cut(self) -> list[Save]:
        """The saves that an ended attempt has not ended, one for each path. Folders are left out, and so are saves that
        were whole again later."""
        left = {save.path: save for save in self.under_way.values() if not save.ranks}
        return [save for _, save in sorted(left.items())]

    def torn(self) -> list[Folder]:
        """The folders that are not whole. Call it when the attempt is over."""
        left = [folder for folder in self.folders.values() if not folder.whole]
        return [folder for folder in left if folder.beside < max(folder.begun.values())]


def hear(saves: Saves, rank: int, line: Mapping[str, Any]) -> Saves:
    """`saves` after one more line of the journal of `rank`."""
    kind, path, number = line.get("kind"), line.get("path"), line.get("n")
    if kind == "beside" and isinstance(line.get("folder"), str) and len(saves.beside) < _MOST_BESIDE:
        return replace(saves, beside=saves.beside | {line["folder"]})
    if not isinstance(path, str) or type(number) is not int:
        return saves
    key = rank, number
    match kind:
        case "save_begun":
            return _begun(saves, key, _save(rank, number, path, line))
        case "save_beside" | "save_in_place" if path in saves.folders:
            folder = saves.folders[path]
            beside = max(folder.begun.values()) if kind == "save_beside" else 0
            return replace(saves, folders={**saves.folders, path: replace(folder, beside=beside)})
        case "save_in_place" if key in saves.under_way:
            return replace(saves, under_way={**saves.under_way, key: replace(saves.under_way[key], beside=False)})
        case "save_done" | "save_failed":
            left = {other: save for other, save in saves.under_way.items() if other != key}
            saves = replace(saves, under_way=left)
            return _done(saves, _save(rank, number, path, line), line) if kind == "save_done" else saves
    return saves


def _save(rank: int, number: int, path: str, line: Mapping[str, Any]) -> Save:
    within, how = line.get("within"), line.get("how")
    return Save(
        rank,
        number,
        path,
        step=_whole(line, "step"),
        at=_seconds(line, "mono"),
        beside=line.get("beside") is True,
        ranks=max(0, _whole(line, "ranks")),
        within=within if isinstance(within, str) else None,
        how=how if isinstance(how, str) else "",
    )


def _begun(saves: Saves, key: tuple[int, int], save: Save) -> Saves:
    mine = [other for other in saves.under_way if other[0] == save.rank]
    gone = mine[: max(0, len(mine) + 1 - _MOST_UNDER_WAY)]
    kept = {other: one for other, one in saves.under_way.items() if other not in gone}
    saves = replace(saves, under_way={**kept, key: save})
    if not save.ranks or save.within is not None:
        return saves
    known = saves.folders.get(save.path, Folder(save))
    count = known.begun.get(save.rank, 0) + 1
    others = {path: folder for path, folder in saves.folders.items() if path != save.path}
    folders = {**others, save.path: replace(known, newest=save, begun={**known.begun, save.rank: count})}
    return replace(saves, folders=dict(list(folders.items())[-_MOST_PATHS:]))


def _done(saves: Saves, save: Save, line: Mapping[str, Any]) -> Saves:
    took = max(0.0, save.at - _seconds(line, "began")) if "began" in line else 0.0
    done = replace(save, size=_whole(line, "size"), took=took)
    if save.within is not None:
        return saves  # nobody resumes from a part
    if save.ranks and (known := saves.folders.get(save.path)):
        known = replace(known, done={**known.done, save.rank: known.begun.get(save.rank, 0)})
        saves = replace(saves, folders={**saves.folders, save.path: known})
        if not known.whole:
            return saves
    newest = done if saves.newest is None or done.at >= saves.newest.at else saves.newest
    step, unplaced = max(saves.step, done.step), saves.unplaced or done.step < 0
    others = {path: other for path, other in saves.done.items() if path != done.path}
    kept = dict([*others.items(), (done.path, done)][-_MOST_PATHS:])
    return replace(saves, newest=newest, step=step, unplaced=unplaced, done=kept)


def _whole(line: Mapping[str, Any], key: str) -> int:
    value = line.get(key)
    return value if type(value) is int and value >= 0 else -1


def _seconds(line: Mapping[str, Any], key: str) -> float:
    value = line.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
