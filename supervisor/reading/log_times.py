"""attempts/NNNN/times: when the logs of an attempt grew, as its supervisor saw it. So a line has a time, though its
rank writes to the file itself, with no pipe between.

    record = (milliseconds since the epoch << 16 | rank + 1, size of that log then), two words of 8 bytes; the launcher
    is rank -1. A log is noted at each look in which it has grown: everything before that size was written by then, and
    everything after the size of the record before was not.

A supervisor that died leaves a gap: lines of that time have the time of the next look. The file is appended and never
synced. After a power cut the last part may be missing.
"""

from __future__ import annotations

import os
import struct
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from pathlib import Path

from trainer.rundir.files.untrusted_files import open_file

LAUNCHER = -1
_RECORD = struct.Struct("<QQ")
_BLOCK = 1 << 20
_PAUSE = 10.0
"""Seconds without another try after the disk has refused."""


class TimesWriter:
    """The file, in the supervisor that writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sizes: dict[int, int] = {}
        self._fd: int | None = None
        self._again = float("-inf")

    def note(self, sizes: Mapping[int, int], now: float) -> None:
        """The logs that have another size than at the last call are noted. An error of the disk leaves a gap."""
        grown = {rank: size for rank, size in sizes.items() if size != self._sizes.get(rank, 0)}
        if not grown or now < self._again:
            return
        at = int(time.time() * 1000) << 16
        data = b"".join(_RECORD.pack(at | (rank + 1) & 0xFFFF, size) for rank, size in grown.items())
        try:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                # A supervisor may have been killed in the middle of a record.
                os.ftruncate(self._fd, os.fstat(self._fd).st_size // _RECORD.size * _RECORD.size)
            if os.write(self._fd, data) != len(data):
                self.close()
                self._again = now + _PAUSE
        except OSError:
            self.close()
            self._again = now + _PAUSE
        self._sizes.update(grown)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Times:
    """The file, for a reader, while it grows, and those of other nodes beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: dict[Path, int] = {}
        self._sizes: dict[int, array[int]] = {}
        self._at: dict[int, array[int]] = {}

    def refresh(self) -> None:
        """Reads what has been added. Whatever is in the files, it raises nothing."""
        for path in (self._path, *self._path.parent.glob(f"{self._path.name}.node*")):
            self._refresh(path)

    def _refresh(self, path: Path) -> None:
        try:
            fd = open_file(path)
        except OSError:
            return
        try:
            while data := os.pread(fd, _BLOCK, self._read.get(path, 0)):
                whole = data[: len(data) // _RECORD.size * _RECORD.size]
                self._read[path] = self._read.get(path, 0) + len(whole)
                for word, size in _RECORD.iter_unpack(whole):
                    rank = (word & 0xFFFF) - 1
                    if rank != LAUNCHER or path == self._path:
                        self._take(rank, word >> 16, size)
                if len(whole) < len(data):
                    return
        except OSError:
            return
        finally:
            os.close(fd)

    def _take(self, rank: int, milliseconds: int, size: int) -> None:
        sizes, at = self._sizes.setdefault(rank, array("Q")), self._at.setdefault(rank, array("Q"))
        if sizes and size < sizes[-1]:
            # The log was truncated. What was there before is no more.
            del sizes[:], at[:]
        sizes.append(size)
        # The clock may have been set back.
        at.append(max(milliseconds, at[-1] if at else 0))

    def time(self, rank: int | None, end: int) -> float | None:
        """Seconds since the epoch by which the first `end` bytes of the log were written. None if that is not known
        yet, or was never noted."""
        sizes = self._sizes.get(LAUNCHER if rank is None else rank)
        index = bisect_left(sizes, end) if sizes is not None else 0
        if sizes is None or index == len(sizes):
            return None
        return self._at[LAUNCHER if rank is None else rank][index] / 1000

    def before(self, rank: int | None, since: float) -> int:
        """A size of the log before which everything was written before `since`."""
        at = self._at.get(LAUNCHER if rank is None else rank)
        index = bisect_right(at, max(0, int(since * 1000)) - 1) if at is not None else 0
        return self._sizes[LAUNCHER if rank is None else rank][index - 1] if index else 0
