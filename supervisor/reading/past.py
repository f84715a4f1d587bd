"""The logs of a run's attempts, and the past lines that are shown before following begins."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from supervisor.reading.choice import Choice
from supervisor.reading.lines import Line, Splitter
from supervisor.reading.log_times import Times
from supervisor.reading.logfile import LogFollower, drain, last_lines, last_matching, line_at
from trainer.rundir.layout import RunDir

_RANK_LOG = re.compile(r"^rank(\d+)\.log$")


@dataclass(frozen=True, slots=True)
class LogFile:
    """One log of one attempt. `rank` None is the launcher's."""

    attempt: int
    rank: int | None
    path: Path

    @property
    def written(self) -> float:
        """The time when it last grew, in seconds since the epoch; 0 if it does not exist."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0


def log_files(run: RunDir, attempt: int, choice: Choice) -> list[LogFile]:
    """The wanted logs of the attempt that exist now: the launcher's first, then by rank."""
    folder = run.attempt(attempt)
    if not choice.logs or choice.attempt not in (None, attempt):
        return []
    try:
        ranks = [int(found[1]) for path in folder.path.iterdir() if (found := _RANK_LOG.match(path.name))]
    except OSError:
        return []
    files = [LogFile(attempt, rank, folder.rank_log(rank)) for rank in sorted(ranks) if choice.rank in (None, rank)]
    if choice.rank is None and folder.launcher_log.exists():
        files.insert(0, LogFile(attempt, None, folder.launcher_log))
    return files


class Clocks:
    """The times of the lines of a run's logs."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._times: dict[int, Times] = {}

    def refresh(self, attempts: Collection[int]) -> None:
        """Reads what the supervisor has noted about these attempts since the last call."""
        for attempt in attempts:
            self._of(attempt).refresh()

    def time(self, file: LogFile, line: Line) -> float | None:
        """Seconds since the epoch by which the line was written. None if that is not known yet, or was never noted."""
        return self._of(file.attempt).time(file.rank, line.at)

    def begin(self, file: LogFile, since: float | None) -> int:
        """The place in the file from which lines may be newer than `since`."""
        size = self._of(file.attempt).before(file.rank, since) if since is not None else 0
        return line_at(file.path, size) if size else 0

    def _of(self, attempt: int) -> Times:
        if attempt not in self._times:
            self._times[attempt] = Times(self._run.attempt(attempt).times)
        return self._times[attempt]


@dataclass(frozen=True, slots=True)
class Opened:
    """A log whose past lines will be shown, and the follower that continues after them."""

    file: LogFile
    follower: LogFollower
    lines: Iterable[Line]


def open_back(
    files: list[LogFile],
    back: int | None,
    newest: int,
    splitter: Callable[[], Splitter],
    choice: Choice,
    accepts: Callable[[LogFile, Line], bool],
    clocks: Clocks,
) -> list[Opened]:
    """The logs in the order of `files`, oldest first, opened so that the last `back` lines of each rank are shown
    (None: all).

    Logs of attempts before `newest` without lines to show are not opened.
    """
    opened: list[Opened] = []
    left: dict[int | None, int] = {}
    for file in reversed(files):
        room = left.get(file.rank, back)
        if choice.since is not None and file.written < choice.since:
            room = 0
        if room == 0 and file.attempt < newest:
            continue
        begin = clocks.begin(file, choice.since)
        found, one = _open(file, room, splitter, choice, functools.partial(accepts, file), begin)
        opened.append(one)
        if room is not None:
            left[file.rank] = room - found
    return opened[::-1]


def _open(
    file: LogFile,
    room: int | None,
    splitter: Callable[[], Splitter],
    choice: Choice,
    accepts: Callable[[Line], bool],
    begin: int,
) -> tuple[int, Opened]:
    if (choice.grep is not None or choice.until is not None) and room:
        follower, kept = last_matching(file.path, room, splitter, accepts)
        return len(kept), Opened(file, follower, kept)
    offset, found = (0, 0) if room is None else last_lines(file.path, room)
    follower = LogFollower(file.path, splitter(), max(offset, begin))
    return found, Opened(file, follower, (line for line in drain(follower) if accepts(line)))
