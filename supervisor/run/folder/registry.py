"""The places of this user's runs, so that they are found from any folder. Each run has a small file in the user's state
folder.

So two launches at once write two files. An entry is only a hint: look at the run itself before you act. Another machine
may share the folder (a home on a file server). Its entries are not touched.
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
"""Seconds after which an entry is dropped that leads nowhere from here, for any reason."""


class _Entry(msgspec.Struct):
    path: str
    host: str
    device: int = 0
    """The disk of the run, by the host's number."""


def register(run: RunDir) -> None:
    """From now on, registered() finds the run, if the user has a state folder."""
    if (folder := _folder()) is None:
        return
    path, host = str(run.path.resolve()), here()["host"]
    with contextlib.suppress(OSError):
        entry = _Entry(path, host, run.path.stat().st_dev)
        folder.mkdir(mode=0o700, exist_ok=True)
        replace_soon(_name(folder, host, path), encode(entry))


def registered() -> list[Path]:
    """The folders of this machine's runs that still exist. Entries of other runs are dropped."""
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
    # A disk that is not mounted now may come back. A folder that is gone from a mounted disk does not come back.
    if old or (ours and _device(path) == found.device):
        with contextlib.suppress(OSError):
            entry.unlink()
    return None


def _is_run(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return RunDir(path).run_json.is_file()
    return False


def _device(path: Path) -> Any:
    """The disk of the nearest existing folder above `path`."""
    for folder in _upwards(path):
        with contextlib.suppress(OSError, ValueError):
            return folder.stat().st_dev
    return None


def _upwards(path: Path) -> Iterator[Path]:
    yield path
    yield from path.parents
