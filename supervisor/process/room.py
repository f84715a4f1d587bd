"""The room left on the disks that a run may write to. It never waits for a file server that is gone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

_NO_ROOM = 1 << 20
"""A disk with fewer free bytes than this counts as full."""
_MOST_ARGUMENTS = 50
_REMOTE = ("nfs", "cifs", "smb", "fuse", "9p", "lustre", "ceph", "gpfs", "beegfs", "afs", "glusterfs", "autofs")


def places(run: Path, cwd: str, command: Sequence[str]) -> list[Path]:
    """Folders that a script may write to: the run's, its current folder, folders in its arguments, shared memory, /tmp.

    Arguments count only on local disks. A look at a file system whose server is gone can last for ever.
    """
    remote = _remote_mounts()
    words = [word.rpartition("=")[2] for word in command[1:][:_MOST_ARGUMENTS]]
    folders = [Path(os.path.normpath(Path(cwd, word))) for word in words if word and not word.startswith("-")]
    # os.path is used, not pathlib. An argument may be any text. It may be too long for a name, or lie in a folder that
    # we may not read.
    near = [f for f in folders if not any(f.is_relative_to(m) for m in remote)]
    named = [f for f in near if not os.path.islink(f) and os.path.isdir(f)]  # noqa: PTH112, PTH114 (see above)
    return [run, Path(cwd), *named, Path("/dev/shm"), Path("/tmp")]


def _remote_mounts() -> list[str]:
    with contextlib.suppress(OSError):
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        return [fields[1] for fields in mounts if len(fields) > 2 and fields[2].startswith(_REMOTE)]
    return []


def disks(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """For each disk: the first of `folders` on it, total and free bytes, free inodes (null without such a limit)."""
    found: dict[int, dict[str, Any]] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            room = os.statvfs(folder)
            inodes = room.f_favail if room.f_files else None
            total, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
            disk = {"path": str(folder), "total": total, "free": free, "free_inodes": inodes}
            found.setdefault(folder.stat().st_dev, disk)
    return list(found.values())


def is_full(disk: Mapping[str, Any]) -> bool:
    return bool(disk["total"] and (disk["free"] < _NO_ROOM or disk["free_inodes"] == 0))
