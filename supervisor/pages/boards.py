"""What the program has logged for TensorBoard, as curves of a run.

The ranks have noted the folders that the program writes to. A number that a later attempt has logged again is lost, as
TensorBoard itself sees it: from the first step that comes again.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from supervisor.reading.event_file import Point, points, size_of
from trainer.rundir.files.untrusted_files import tail
from trainer.rundir.layout import RunDir
from trainer.rundir.records.boards import Board

_READ = 1 << 19
"""Bytes that are read of all files of a run. Of more, blocks that are spread over each file."""
_FOLDERS, _FILES = 32, 400
_LISTED = 1 << 16


@dataclass(slots=True)
class Tag:
    """The numbers of one name, over the program's own steps."""

    tag: str
    name: str = ""
    """The tag, with its folder where there are several."""
    kept: dict[int, float] = field(default_factory=dict)
    lost: dict[int, float] = field(default_factory=dict)
    breaks: list[int] = field(default_factory=list)
    """The last lost step of each file."""

    def take(self, new: Iterable[tuple[int, float]]) -> None:
        """Takes the numbers of the next file. Those of earlier files from its first step on are lost."""
        pairs = dict(new)
        first = min(pairs)
        again = {step: value for step, value in self.kept.items() if step >= first}
        if again:
            self.kept = {step: value for step, value in self.kept.items() if step < first}
            self.lost |= again
            self.breaks.append(max(again))
        self.kept |= pairs


def tags(run: RunDir) -> list[Tag]:
    """By name, what the program has logged. Empty if the run's folder is somebody else's: it would say which files of
    ours are read."""
    folders = _folders(run)
    found: dict[tuple[Path, str], Tag] = {}
    files = [(folder, path, size) for folder in folders for path, size in _files(folder)][-_FILES:]
    total = sum(size for _, _, size in files)
    ended: dict[Path, float] = {}
    for folder, path, size in files:
        told = points(path, _READ if total <= _READ else max(1, _READ * size // total))
        if not told or told[0].at < ended.get(folder, float("-inf")):
            continue  # another process, at the same time
        ended[folder] = told[-1].at
        for name, group in itertools.groupby(sorted(told, key=_tag), key=_tag):
            found.setdefault((folder, name), Tag(name)).take((point.step, point.value) for point in group)
    several = Counter(name for _, name in found)
    for (folder, name), tag in found.items():
        tag.name = f"{name} ({folder.name})" if several[name] > 1 else name
    return sorted(found.values(), key=lambda tag: tag.name)


def _tag(point: Point) -> str:
    return point.tag


def _folders(run: RunDir) -> Sequence[Path]:
    """The folders that the ranks have noted, the last ones."""
    try:
        if run.path.stat().st_uid != os.geteuid():
            return ()
    except OSError:
        return ()
    found = dict[Path, None]()
    for line in tail(run.boards, _LISTED).splitlines():
        try:
            found[Path(msgspec.json.decode(line, type=Board).path)] = None
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return [*found][-_FOLDERS:]


def _files(folder: Path) -> list[tuple[Path, int]]:
    """The event files in the folder with their sizes, in the order of their times."""
    try:
        names = sorted(name for name in os.listdir(folder) if ".tfevents." in name)
    except (OSError, ValueError):  # a NUL in the path
        return []
    return [(folder / name, size) for name in names if (size := size_of(folder / name))]
