"""Files with the old or the new content, never anything between.

Failure model: a process may die between any two calls here. A power cut may lose, keep or cut short any write that was
not fsynced, and any rename, creation or removal whose folder was not fsynced. In both cases a reader sees the old
content or the new.

    replace_file:  write tmp -> fsync tmp -> rename over path -> fsync folder
    publish_dir:   (files written and fsynced) -> fsync folder -> rename to its name = COMMIT -> fsync parent

Every call goes through `Disk`. That is the one place where tests cut the power.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..machine.proc import is_running
from . import room, write_back
from .untrusted_files import open_file

Buffer = bytes | bytearray | memoryview

_LARGE = 1 << 20
_BEHIND = 8 << 20
"""Bytes of a file after which their write-back is begun. With 16 and 32 MB a save takes the same time, or 5 % more."""
_serial = itertools.count()
_TEMPORARY = re.compile(r"\A\..+\.tmp-([0-9]+)-[0-9a-f]+\Z")
"""A file that is being written, and its writer's pid."""


class Disk:
    """The real file system. Tests derive from it, to fail, to stop, or to lose data that was not synced."""

    def create(self, path: Path, chunks: Iterable[Buffer], size: int = 0) -> None:
        """`path` holds exactly `chunks`, synced. It did not exist before (FileExistsError). OSError as the system
        says. `size`: the bytes that all of them have, or a few less."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if size >= _LARGE:
                # A file whose place on the disk is chosen at once costs a third less CPU time than one that grows.
                room.keep(fd, size)
            begun = end = 0
            for chunk in chunks:
                self.write(fd, path, chunk)
                end += memoryview(chunk).nbytes
                if end - begun >= _BEHIND:
                    # Else the disk is idle until the fsync, and the fsync waits for all of the file.
                    self.write_back(fd, path, begun, end - begun)
                    begun = end
            self.fsync(fd, path)
        finally:
            os.close(fd)

    def write(self, fd: int, path: Path, chunk: Buffer) -> None:
        view = memoryview(chunk).cast("B")
        while view:
            # Linux writes at most 2 GiB a call, and a full disk shows first as a short write.
            view = view[os.write(fd, view) :]

    def write_back(self, fd: int, path: Path, start: int, count: int) -> None:
        """Those bytes may become durable before the fsync, or not."""
        write_back.begin(fd, start, count)

    def fsync(self, fd: int, path: Path) -> None:
        os.fsync(fd)

    def mkdir(self, path: Path) -> None:
        # Without parents: a folder that was moved away meanwhile is not made again.
        path.mkdir(mode=0o700, exist_ok=True)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def sync_dir(self, path: Path) -> None:
        """Creations, renames and removals made in `path` before this call survive a power cut."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def rmdir(self, path: Path) -> None:
        path.rmdir()


DISK = Disk()


def replace_file(path: Path, data: Buffer, disk: Disk = DISK) -> None:
    """`path` holds `data`, durably. At every moment before, it held its old content. On an error the old content
    stays."""
    # Each writer has its own name: two processes that replace one file must not share a temporary file.
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{next(_serial)}")
    try:
        disk.create(temporary, [data])
        disk.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            disk.remove(temporary)
        raise
    disk.sync_dir(path.parent)


def replace_soon(path: Path, data: Buffer, mode: int = 0o600) -> None:
    """`path` holds `data`, or its old content; after a power cut it may be empty. It does not wait for the disk: for a
    file that is useful but not needed, and a writer that is in a hurry."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{next(_serial)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(data)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def unfinished(folder: Path) -> list[Path]:
    """The files in `folder` that processes of this machine were writing when they died. OSError if it cannot be
    read."""
    named = ((_TEMPORARY.match(path.name), path) for path in folder.iterdir())
    return [path for match, path in named if match and not is_running(int(match[1])) and not path.is_dir()]


def ensure_dir(path: Path, disk: Disk = DISK) -> None:
    """`path` is a folder, durably. So are the folders above it that were missing."""
    if path.is_dir():
        return
    ensure_dir(path.parent, disk)
    disk.mkdir(path)
    disk.sync_dir(path.parent)


def publish_dir(temporary: Path, final: Path, disk: Disk = DISK) -> None:
    """The finished folder `temporary` has the name `final`, durably. OSError if `final` exists and is not empty."""
    disk.sync_dir(temporary)
    disk.rename(temporary, final)
    disk.sync_dir(final.parent)


def append_line(fd: int, line: bytes) -> None:
    """append() of `line` and a newline."""
    append(fd, line + b"\n")


def append(fd: int, record: bytes) -> None:
    """`record` is appended to `fd` (opened O_APPEND, one writer). On OSError no part of it is there."""
    written = os.write(fd, record)
    if written != len(record):
        # The next record would be appended to a part of this one, and both would be lost.
        os.ftruncate(fd, os.fstat(fd).st_size - written)
        raise OSError(errno.ENOSPC, "short write: no space left on device")


def mend_tail(path: Path) -> int:
    """`path` ends with a newline or is empty: a torn last line is cut off. Returns the number of bytes cut; 0 without a
    file."""
    try:
        fd = open_file(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        size = end = os.fstat(fd).st_size
        while end > 0:
            start = max(0, end - 65536)
            block = os.pread(fd, end - start, start)
            newline = block.rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(fd, end)
            os.fsync(fd)
        return size - end
    finally:
        os.close(fd)
