"""A file that is old or new: it is written into a hidden folder beside its place, under its own name, and renamed.

    DIR/.saving-TAG-PID-N/NAME  ->  DIR/NAME

Under its own name, because torch.save writes that into the file. A process that is killed on the way leaves the folder,
and DIR/NAME as it was. Nothing is synced here: after a power cut DIR/NAME may be empty, as it may be without us. Mode,
owner and attributes are those that writing over the file would have left.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from ...rundir.files.durable import DISK
from ...rundir.records.journal import BESIDE

_LONGEST = 4000
"""Of a path, in bytes; 4096 is Linux's."""
_PROBE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_serial = itertools.count()


@dataclass(frozen=True, slots=True)
class Unsafe:
    """Why a file can only be written over."""

    why: str


@dataclass(frozen=True, slots=True)
class Beside:
    """Where a file is written until it is whole: an empty file, in a folder of its own, with the mode, owner and
    attributes of what is to be replaced. What the function does to it is what it would have done to that."""

    path: str
    new: str
    before: os.stat_result | None
    """What `path` was before; None if it was not."""

    @property
    def folder(self) -> str:
        return os.path.dirname(self.new)  # noqa: PTH120

    def commit(self) -> str:
        """What was written is at `path`, and nothing beside it; "", or why it had to be copied over what was there."""
        why = ""
        if not os.stat(self.new).st_size and len(names := os.listdir(self.folder)) > 1:  # noqa: PTH116, PTH208
            # It did not take the name that it was given: what it made is where it would be without us.
            for name in [name for name in names if name != os.path.basename(self.new)]:  # noqa: PTH119
                DISK.rename(Path(self.folder, name), Path(os.path.dirname(self.path), name))  # noqa: PTH120
        else:
            try:
                DISK.rename(Path(self.new), Path(self.path))
            except OSError as error:
                # A file that is a mount of its own, for one (EBUSY).
                why = error.strerror or str(error)
                shutil.copyfile(self.new, self.path)
        self.abort()
        return why

    def abort(self) -> None:
        """Nothing is left beside `path`."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.new)  # noqa: PTH108
            os.rmdir(self.folder)  # noqa: PTH106
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)

    def replaces(self) -> bool:
        """Whether a file with content is there, whose room writing over it would use."""
        return self.before is not None and self.before.st_size > 0

    def is_full(self) -> bool:
        """Whether the disk has no room now for what is being written."""
        try:
            fd = os.open(os.path.join(self.folder, ".probe"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)  # noqa: PTH118
        except OSError as error:
            return error.errno in _FULL
        try:
            os.posix_fallocate(fd, 0, _PROBE)
        except OSError as error:
            return error.errno in _FULL
        finally:
            os.close(fd)
        return False


def prepare(path: str, tag: str) -> Beside | Unsafe | None:
    """Where to write what is to be at `path`, which is absolute and has no links; or why that would not be safe. None
    where there is nothing to make safe: it is no regular file, or could not be written anyhow."""
    folder, name = os.path.split(path)
    try:
        before = os.stat(path, follow_symlinks=False)  # noqa: PTH116
    except FileNotFoundError:
        before = None
    except OSError:
        return None
    if before is not None:
        if not stat.S_ISREG(before.st_mode) or not os.access(path, os.W_OK, effective_ids=True):
            return None
        if before.st_nlink > 1:
            return Unsafe(f"it has {before.st_nlink} names (hard links), and all are to have the new content")
        if before.st_uid != os.geteuid() and os.geteuid():
            return Unsafe("it belongs to another user")
        if before.st_size and _free(folder) < before.st_size + before.st_size // 50 + _PROBE:
            return Unsafe("the disk has no room for a second copy")
    new = os.path.join(folder, f"{BESIDE}{tag}-{os.getpid()}-{next(_serial)}", name)  # noqa: PTH118
    if len(os.fsencode(new)) > _LONGEST:
        return None
    try:
        os.mkdir(os.path.dirname(new), 0o700)  # noqa: PTH102, PTH120
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
    return beside


def _free(folder: str) -> int:
    """Bytes that this process may still write there."""
    found = os.statvfs(folder)
    return (found.f_bavail if os.geteuid() else found.f_bfree) * found.f_frsize


def _make(beside: Beside) -> None:
    """The empty file is there, as open() would make it, or like the one that is to be replaced."""
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
