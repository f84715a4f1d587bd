"""One log file. It is read from its end, and followed while others write, rotate, truncate or delete it.

    absent ── created ──▶ open ── grows ──────────────▶ lines
                           │ ├── shrinks ─────────────▶ from its start again
                           │ └── another inode there ─▶ the old one to its end, then the new one
                           └──── deleted ─────────────▶ the old one for as long as it grows

It polls with stat, because network file systems deliver no inotify events. One case is not seen: a file is truncated
and grows past the place that was already read, all between two polls.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from supervisor.reading.lines import Line, Splitter
from trainer.rundir.files.untrusted_files import open_file

BLOCK = 65536
REACH = 4 * BLOCK
"""A line longer than this is not read back to its start. `-n` shows only its end."""
BUDGET = 16
"""The most blocks that one poll reads."""
IDLE = 1.0
"""Seconds without a byte after which a line is shown without its newline. A progress bar is shown as often as that."""
TIME_LIMIT = 5.0
"""Seconds after which a line that still grows is shown, as far as it has come."""


def last_lines(path: Path, count: int) -> tuple[int, int]:
    """(offset, found): the last `found` lines of the file begin at `offset`. `found` is less than `count` only if the
    file has no more lines.

    Reads backwards: the cost is the length of those lines, not of the file. (0, 0) if there is no such file.
    """
    try:
        fd = open_file(path)
    except OSError:
        return 0, 0
    try:
        size = os.fstat(fd).st_size
        if not size or count <= 0:
            return size, 0
        return _search_back(fd, size, count)
    finally:
        os.close(fd)


def _search_back(fd: int, size: int, count: int) -> tuple[int, int]:
    end = size - 1 if os.pread(fd, 1, size - 1) == b"\n" else size
    found, edge = 0, end  # (whole lines seen, the end of the newest line of the rest)
    while end > 0:
        start = max(0, end - BLOCK)
        block = os.pread(fd, end - start, start)
        while (newline := block.rfind(b"\n")) >= 0:
            found, edge = found + 1, start + newline
            if found == count:
                return edge + 1, found
            block = block[:newline]
        end = start
        if edge - end >= REACH:
            break
    return end, found + 1


def line_at(path: Path, offset: int) -> int:
    """The begin of the line in which `offset` is. `offset` itself if that line is longer than REACH."""
    try:
        fd = open_file(path)
    except OSError:
        return 0
    try:
        start = max(0, offset - REACH)
        found = os.pread(fd, offset - start, start).rfind(b"\n")
        return start + found + 1 if found >= 0 else offset if start else 0
    finally:
        os.close(fd)


class LogFollower:
    """Gives each line of the file once, from `offset` on."""

    def __init__(self, path: Path, splitter: Splitter, offset: int = 0) -> None:
        self.path = path
        self.behind = False
        """Whether there is more to read now than the last poll has read."""
        self._splitter = splitter
        self._splitter.place = self._offset = offset
        self._fd: int | None = None
        self._replaced = False
        self._heard = self._given = 0.0

    def poll(self, now: float) -> list[Line]:
        """The lines since the last call, at most about 1 MiB. `now` in monotonic seconds."""
        lines: list[Line] = []
        self.behind = False
        for _ in range(BUDGET):
            data = self._read()
            if data:
                if not self._splitter.pending:
                    self._given = now
                self._heard = now
                lines += self._splitter.feed(data)
            elif not self._begin_again(lines):
                lines += self._overdue(now)
                return lines
        self.behind = True
        return lines

    def finish(self) -> list[Line]:
        """The pending bytes as a line. Then the file is closed."""
        self._close()
        return self._splitter.flush()

    def _overdue(self, now: float) -> list[Line]:
        if not self._splitter.pending:
            return []
        waited = now - self._given
        if not (now - self._heard >= IDLE or waited >= (IDLE if self._splitter.bar else TIME_LIMIT)):
            return []
        self._given = now
        return self._splitter.flush()

    def _read(self) -> bytes:
        try:
            if self._fd is None:
                self._fd = open_file(self.path)
            data = os.pread(self._fd, BLOCK, self._offset)
        except FileNotFoundError:
            return b""
        except OSError:  # The file is stale (removed on NFS), or we may not read it. The next poll looks again.
            self._close()
            return b""
        self._offset += len(data)
        self._replaced = self._replaced and not data
        return data

    def _begin_again(self, lines: list[Line]) -> bool:
        """Whether the file at `path` must now be read from its start, because it was truncated or replaced."""
        if self._fd is None:
            return False
        try:
            here, there = os.fstat(self._fd), self.path.stat()
        except OSError:
            return False
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            if not self._replaced:
                # The writer may not have opened the new file yet. The next poll looks at the old file once more.
                self._replaced = self.behind = True
                return False
            self._close()
        elif here.st_size >= self._offset:
            return False
        self._offset, self._replaced = 0, False
        lines += self._splitter.end()
        self._splitter.place = 0
        return True

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def last_matching(
    path: Path, count: int, splitter: Callable[[], Splitter], accepts: Callable[[Line], bool]
) -> tuple[LogFollower, list[Line]]:
    """The last `count` lines that `accepts` takes, and a follower for the lines after them.

    Reads from the end in windows that grow, until one of them holds enough.
    """
    window = BLOCK * BUDGET
    while True:
        size = path.stat().st_size if path.exists() else 0
        offset = max(0, size - window)
        follower = LogFollower(path, splitter(), offset)
        kept: deque[Line] = deque(maxlen=count)
        lines = drain(follower)
        if offset:
            next(lines, None)  # It begins in the middle of a line.
        kept.extend(line for line in lines if accepts(line))
        if len(kept) == count or not offset:
            return follower, list(kept)
        follower.finish()
        window *= 16


def drain(follower: LogFollower) -> Iterator[Line]:
    """All lines that are in the file now. A line without its newline stays pending."""
    while True:
        yield from follower.poll(0.0)
        if not follower.behind:
            return
