"""A folder of checkpoints is one program's. Where no supervisor sees to that, rank 0 locks the folder itself.

A second program would take the first one's steps for its own saves, and sweep away the folders that it writes into.
"""

from __future__ import annotations

import os
import time
import weakref
from pathlib import Path

from ...rundir.files.durable import Disk, ensure_dir
from ...rundir.files.flock import is_ours
from ..errors import StateError

_LONGEST_END_S, _LOOK_S = 5.0, 0.02
"""So long a process that was killed may have its lock yet: its device memory is freed first. It is looked for so often
meanwhile."""


class Hold:
    """The lock is held by this process as long as this exists."""

    def __init__(self, fd: int) -> None:
        self.give_back = weakref.finalize(self, os.close, fd)


_held: weakref.WeakValueDictionary[Path, Hold] = weakref.WeakValueDictionary()


def _forget() -> None:
    # A DataLoader's worker may outlive its parent for a moment, and would keep the lock.
    for hold in list(_held.values()):
        hold.give_back()
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def hold(folder: Path, disk: Disk) -> Hold | None:
    """`folder` exists, and no other process can hold it now; this one may again. None if it cannot be written or
    locked, as on some network file systems. StateError if another process holds it."""
    if (ours := _held.get(folder)) is not None:
        return ours
    try:
        ensure_dir(folder, disk)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    mine, until = Hold(fd), time.monotonic() + _LONGEST_END_S
    try:
        while not is_ours(fd):
            if time.monotonic() > until:
                raise StateError(
                    f"another program trains in {folder}, and each would take the other's checkpoints for its own: "
                    "give another directory=, or end that one; load() only reads"
                )
            time.sleep(_LOOK_S)  # a flock that waits has no limit
    except OSError:
        return None
    _held[folder] = mine
    return mine
