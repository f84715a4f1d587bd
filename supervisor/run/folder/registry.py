"""Where this user's runs are, so that they are found from any folder: a small file a run, in the user's own state folder.

One file a run, so that two launches at once write two files. An entry is a hint and proves nothing: whoever acts on a run
looks at the run itself. Another machine may share the folder (a home on a file server): its entries are left to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from supervisor.process.place import here
from supervisor.run.folder.user_folders import state
from trainer.rundir.files.codec import encode, read
from trainer.rundir.files.durable import replace_soon
from trainer.rundir.layout import RunDir

FORGOTTEN = 90 * 86400.0
"""Seconds after which an entry that leads nowhere from here is dropped, whatever the reason."""


class _Entry(msgspec.Struct):
    path: str
    host: str
    device: int = 0
    """The disk that it is on, as the host numbers it."""


def register(run: RunDir) -> None:
    """The run is found by registered() from now on, where the user has a folder for that."""
    if (folder := _folder()) is None:
        return
    path, host = str(run.path.resolve()), here()["host"]
    with contextlib.suppress(OSError):
        entry = _Entry(path, host, run.path.stat().st_dev)
        folder.mkdir(mode=0o700, exist_ok=True)
        replace_soon(_name(folder, host, path), encode(entry))


def registered() -> list[Path]:
    """The folders of the runs that were launched on this machine and are still there. Entries of others are dropped."""
    folder = _folder()
    if folder is None:
        return []
    return [path for entry in sorted(folder.glob("*.json")) if (path := _follow(entry)) is not None]


def _folder() -> Path | None:
    found = state()
    return found / "runs" if found is not None else None


def _name(folder: Path, host: str, path: str) -> Path:
    return folder / f"{hashlib.sha256(json.dumps([host, path]).encode()).hexdigest()[:24]}.json"


def _follow(entry: Path) -> Path | None:
    try:
        found = read(entry, _Entry, 1 << 16)
        old = time.time() - entry.stat().st_mtime > FORGOTTEN
    except (OSError, ValueError):
        found, old = _Entry("", ""), True
    path, ours = Path(found.path), found.host == here()["host"]
    if ours and path.is_absolute() and _is_run(path):
        return path
    # A disk that is not mounted now comes back; what was on one that is there does not.
    if old or (ours and _device(path) == found.device):
        with contextlib.suppress(OSError):
            entry.unlink()
    return None


def _is_run(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return RunDir(path).run_json.is_file()
    return False


def _device(path: Path) -> Any:
    """Of the nearest folder above `path` that is there."""
    for folder in _upwards(path):
        with contextlib.suppress(OSError, ValueError):
            return folder.stat().st_dev
    return None


def _upwards(path: Path) -> Iterator[Path]:
    yield path
    yield from path.parents
