"""Folders of this user outside any run: a cache for data that can be learned again, a state folder for data that must
stay, and a folder for sockets.

They are in the usual places of the home. If there is no home, or it cannot be written, they are in a temporary folder
of the machine, named by uid. A folder is used only if it belongs to this user alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_TEMPORARY = (Path("/var/tmp"), Path("/tmp"), Path("/dev/shm"))
_OTHERS = 0o077


def cache() -> Path | None:
    """The folder for data that may be lost. None if there can be none."""
    return _first("XDG_CACHE_HOME", ".cache")


def state() -> Path | None:
    """The folder for data that must survive a restart of the machine. None if there can be none."""
    return _first("XDG_STATE_HOME", ".local/state")


def runtime() -> Path | None:
    """The folder for sockets of processes that live now. None if there can be none."""
    given = Path(os.environ.get("XDG_RUNTIME_DIR") or ".")
    if given.is_absolute() and _private(given / "supervise"):
        return given / "supervise"
    # One at a time: what is not needed is not made.
    return next((folder / "kept" for folder in _temporaries() if _private(folder) and _private(folder / "kept")), None)


def home() -> Path | None:
    """The user's home. None if the user has none (and perhaps no passwd entry)."""
    try:
        found = Path.home()
    except (RuntimeError, KeyError, OSError):
        return None
    return found if found.is_absolute() else None


def _first(variable: str, usual: str) -> Path | None:
    return next(filter(_private, _candidates(variable, usual)), None)


def _candidates(variable: str, usual: str) -> Iterator[Path]:
    given = Path(os.environ.get(variable) or ".")
    if given.is_absolute():
        yield given / "supervise"
    elif (root := home()) is not None:
        yield root / usual / "supervise"
    yield from _temporaries()


def _temporaries() -> Iterator[Path]:
    for temporary in _TEMPORARY:
        yield temporary / f"supervise-user-{os.geteuid()}"


def _private(path: Path) -> bool:
    """Whether `path` is a folder of this user that takes files and that nobody else may enter. It is made if it is
    missing."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        # In a temporary folder, anybody may have made it, or a link with that name.
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        if found.st_mode & _OTHERS:
            path.chmod(0o700)
        return os.access(path, os.W_OK | os.X_OK)
    except OSError:
        return False
