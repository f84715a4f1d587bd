"""Disks that stop or fail at a call of the durable seam. What a power cut leaves is in powercut.py.

CrashingDisk(n)   the process dies at its n-th call: what was done before is there, nothing after it
FullDisk(n)       from the n-th call on there is no space left
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from trainer.rundir.files.durable import Buffer, Disk


class Cut(BaseException):
    """The process is gone. No handler of the code under test may catch it."""


class CrashingDisk(Disk):
    def __init__(self, calls: int | None = None) -> None:
        self.calls = 0
        self._last = calls

    def _point(self) -> None:
        if self.calls == self._last:
            raise Cut
        self.calls += 1

    def create(self, path: Path, chunks: Iterable[Buffer], size: int = 0) -> None:
        self._point()
        super().create(path, chunks, size)

    def write(self, fd: int, path: Path, chunk: Buffer) -> None:
        try:
            self._point()
        except Cut:
            os.write(fd, memoryview(chunk).cast("B")[: len(chunk) // 2])
            raise
        super().write(fd, path, chunk)

    def write_back(self, fd: int, path: Path, start: int, count: int) -> None:
        self._point()
        super().write_back(fd, path, start, count)

    def fsync(self, fd: int, path: Path) -> None:
        self._point()
        super().fsync(fd, path)

    def mkdir(self, path: Path) -> None:
        self._point()
        super().mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        self._point()
        super().rename(source, target)

    def sync_dir(self, path: Path) -> None:
        self._point()
        super().sync_dir(path)

    def remove(self, path: Path) -> None:
        self._point()
        super().remove(path)

    def rmdir(self, path: Path) -> None:
        self._point()
        super().rmdir(path)


class FullDisk(CrashingDisk):
    def _point(self) -> None:
        self.calls += 1
        if self._last is not None and self.calls > self._last:
            raise OSError(errno.ENOSPC, "No space left on device")

    # What frees space works on a full disk.
    def remove(self, path: Path) -> None:
        Disk.remove(self, path)

    def rmdir(self, path: Path) -> None:
        Disk.rmdir(self, path)
