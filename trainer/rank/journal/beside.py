"""Replaces a file so that it is old or new, never half: it is written under its own name into a hidden folder beside
its place, then renamed.

    DIR/.saving-TAG-PID-N/NAME  ->  DIR/NAME

The name stays the same, because torch.save writes it into the file. A process that is killed on the way leaves the
folder, and DIR/NAME as it was. Nothing is synced here: after a power cut DIR/NAME may be empty, as without us. The new
file gets the mode, owner and attributes that writing over the old one would have left.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from ...rundir.files.durable import DISK
from ...rundir.records.journal import BESIDE
from . import kept

_LONGEST = 4000
"""The longest path in bytes. Linux allows 4096."""
_PROBE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_serial = itertools.count()
_LIBC = ctypes.CDLL(None)
_AT_FDCWD, _EXCHANGE = -100, 2


@dataclass(frozen=True, slots=True)
class Unsafe:
    """The reason why a file can only be written over."""

    why: str


@dataclass(frozen=True, slots=True)
class Beside:
    """A file that is being written beside its place: at first empty, in a folder of its own, with the mode, owner and
    attributes of the file to replace. A function changes it as it would have changed that file."""

    path: str
    new: str
    before: os.stat_result | None
    """The stat of `path` before. None if there was no file."""

    @property
    def folder(self) -> str:
        return os.path.dirname(self.new)

    def commit(self) -> str:
        """Moves the new file to `path` and leaves nothing beside it. "", or the reason why it was copied over the
        old."""
        why = ""
        if not os.stat(self.new).st_size and len(names := os.listdir(self.folder)) > 1:
            # The function did not use the given name. Its files go where they would be without us.
            for name in [name for name in names if name != os.path.basename(self.new)]:
                DISK.rename(Path(self.folder, name), Path(os.path.dirname(self.path), name))
        else:
            try:
                if self.before is None or not exchange(self.new, self.path):
                    DISK.rename(Path(self.new), Path(self.path))
            except OSError as error:
                # For example, the file is a mount of its own (EBUSY).
                why = error.strerror or str(error)
                shutil.copyfile(self.new, self.path)
        self.abort()
        return why

    def abort(self) -> None:
        """Removes what is left beside `path`."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.new)
            os.rmdir(self.folder)
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)

    def replaces(self) -> bool:
        """Whether it replaces a file with content. Writing over that file would use its room."""
        return self.before is not None and self.before.st_size > 0

    def is_full(self) -> bool:
        """Whether the disk has no room now for the file that is being written."""
        try:
            fd = os.open(os.path.join(self.folder, ".probe"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            return error.errno in _FULL
        try:
            os.posix_fallocate(fd, 0, _PROBE)
        except OSError as error:
            return error.errno in _FULL
        finally:
            os.close(fd)
        return False


def exchange(one: str, other: str) -> bool:
    """Swaps the files at `one` and `other` by one rename. False if the system or the file system cannot do so.

    If a rename replaces a file, ext4 writes out the new file before the call returns (auto_da_alloc). That takes a
    third of the time of a save of 400 MB. An exchange does not do so. The helper that syncs finished saves does it
    later.
    """
    names = os.fsencode(one), os.fsencode(other)
    renameat2 = getattr(_LIBC, "renameat2", None)
    return renameat2 is not None and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0


def prepare(path: str, tag: str) -> Beside | Unsafe | None:
    """The place to write the file that is to be at `path` (absolute, without links), or the reason why that is unsafe.
    None if nothing needs protection: it is no regular file, or could not be written anyhow."""
    folder, name = os.path.split(path)
    try:
        before = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        before = None
    except OSError:
        return None
    if before is not None:
        if not stat.S_ISREG(before.st_mode) or not os.access(path, os.W_OK, effective_ids=True):
            return None
        if before.st_nlink > 1 and before.st_nlink - kept.names(path, before) > 1:
            return Unsafe(f"it has {before.st_nlink} names (hard links), and all of them must get the new content")
        if before.st_uid != os.geteuid() and os.geteuid():
            return Unsafe("it belongs to another user")
        if before.st_size and _free(folder) < before.st_size + before.st_size // 50 + _PROBE:
            return Unsafe("the disk has no room for a second copy")
    new = os.path.join(folder, f"{BESIDE}{tag}-{os.getpid()}-{next(_serial)}", name)
    if len(os.fsencode(new)) > _LONGEST:
        return None
    try:
        os.mkdir(os.path.dirname(new), 0o700)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Unsafe(f"no folder can be made beside it: {error.strerror}")
    beside = Beside(path, new, before)
    try:
        _make(beside)
    except OSError as error:
        beside.abort()
        return Unsafe(f"no file like it can be made beside it: {error.strerror}")
    if before is not None and before.st_size >= _PROBE:
        _make_room(path)
    return beside


def _make_room(path: str) -> None:
    """Frees the page cache of `path` that is on the disk too, for the new file. Writing over `path` would reuse that
    memory as well. Memory from elsewhere may be far slower: a virtual machine has to ask its host."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _free(folder: str) -> int:
    """Bytes that this process may still write there."""
    found = os.statvfs(folder)
    return (found.f_bavail if os.geteuid() else found.f_bfree) * found.f_frsize


def _make(beside: Beside) -> None:
    """Makes the empty file: as open() would make it, or like the file to replace."""
    fd = os.open(beside.new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if (before := beside.before) is None:
            return
        found = os.fstat(fd)
        if (found.st_uid, found.st_gid) != (before.st_uid, before.st_gid):
            os.fchown(fd, before.st_uid, before.st_gid)
        if found.st_mode != before.st_mode:
            os.fchmod(fd, stat.S_IMODE(before.st_mode))
        with contextlib.suppress(AttributeError):
            for name in os.listxattr(beside.path):
                if not name.startswith("security."):
                    os.setxattr(fd, name, os.getxattr(beside.path, name))
    finally:
        os.close(fd)
