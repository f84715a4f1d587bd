"""Saves of torch.distributed.checkpoint into a folder that already holds a checkpoint. The whole folder is written
beside, and one rename exchanges the two. So a kill leaves the old checkpoint or the new one.

    DIR/.saving-TAG-dcp-DIGEST/NAME  <->  DIR/NAME

The coordinating rank makes the folder, if all is well, before any rank writes. The others write there if it exists. A
new folder is written in place: without its .metadata it is no checkpoint, and was none before.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ...rundir.files.durable import DISK
from ...rundir.records.journal import BESIDE
from . import wrapping
from .beside import exchange

_METADATA = ".metadata"


def _stage(writer: Any) -> Path:
    path = os.path.realpath(writer.path)
    digest = hashlib.blake2b(os.fsencode(path), digest_size=6).hexdigest()
    parent, name = os.path.split(path)
    return Path(parent, f"{BESIDE}{wrapping.tag()}-dcp-{digest}", name)


def _can_be_staged(path: str) -> bool:
    """Whether the folder is only a checkpoint and ours, and the disk has room for another."""
    found, size = os.stat(path), 0
    with os.scandir(path) as entries:
        for entry in entries:
            is_part = entry.name == _METADATA or (entry.name.startswith("__") and entry.name.endswith(".distcp"))
            if not is_part or not entry.is_file(follow_symlinks=False):
                return False
            size += entry.stat().st_size
    free = os.statvfs(path)
    room = free.f_bavail * free.f_frsize > size + size // 50 + (1 << 20)
    return room and found.st_uid == os.geteuid() and not os.path.ismount(path)


def _prepare(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def prepare_global_plan(self: Any, plans: Any) -> Any:
        planned = function(self, plans)
        if wrapping.tag() and _is_plain(self):
            stage = _stage(self)
            shutil.rmtree(stage.parent, ignore_errors=True)
            path = os.path.realpath(self.path)
            with contextlib.suppress(OSError):
                if os.path.exists(os.path.join(path, _METADATA)) and _can_be_staged(path):
                    wrapping.tell_staged(path)
                    stage.parent.mkdir(mode=0o700)
                    stage.mkdir(mode=stat.S_IMODE(os.stat(path).st_mode) | stat.S_IRWXU)
        return planned

    return prepare_global_plan


def _is_plain(writer: Any) -> bool:
    """Whether the writer works like torch's own, on a file system of this machine, with one .metadata for all."""
    kind = type(writer)
    ours = all(getattr(getattr(kind, name, None), "of_supervise", False) for name in ("write_data", "finish"))
    return ours and type(writer.fs).__name__ == "FileSystem" and getattr(writer, "use_collectives", True) is not False


@contextlib.contextmanager
def _elsewhere(writer: Any, stage: Path) -> Iterator[None]:
    path, about = writer.path, writer.storage_meta()
    writer.path = stage
    # The checkpoint must contain its own name.
    writer.storage_meta = lambda: about
    try:
        yield
    finally:
        writer.path = path
        del writer.storage_meta


def _write(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def write_data(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not wrapping.tag() or not _is_plain(self) or not (stage := _stage(self)).is_dir():
            return function(self, *args, **kwargs)
        with _elsewhere(self, stage):
            return function(self, *args, **kwargs)

    write_data.of_supervise = True  # type: ignore[attr-defined]
    return write_data


def _finish(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def finish(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not wrapping.tag() or not _is_plain(self) or not (stage := _stage(self)).is_dir():
            return function(self, *args, **kwargs)
        with _elsewhere(self, stage):
            result = function(self, *args, **kwargs)
        _exchange(stage, Path(os.path.realpath(self.path)))
        shutil.rmtree(stage.parent, ignore_errors=True)
        return result

    finish.of_supervise = True  # type: ignore[attr-defined]
    return finish


def _exchange(stage: Path, path: Path) -> None:
    """Moves the content of `stage` to `path`, by one rename if the file system can do that (renameat2(2))."""
    with contextlib.suppress(OSError):
        os.chmod(stage, stat.S_IMODE(path.stat().st_mode))
    if exchange(str(stage), str(path)):
        return
    wrapping.tell_staged(str(path), still=False)
    DISK.remove(path / _METADATA)
    parts = sorted(stage.iterdir(), key=lambda part: part.name == _METADATA)
    for part in parts:
        DISK.rename(part, path / part.name)
    for left in path.iterdir():
        if left.name not in {part.name for part in parts}:
            DISK.remove(left)


def wrap(module: ModuleType) -> None:
    """Wraps the writer of torch.distributed.checkpoint.filesystem, as of torch 2.6 to 2.15. It computes paths from
    `self.path`, and does not use them after its methods return."""
    writer = module._FileSystemWriter
    writer.prepare_global_plan = _prepare(writer.prepare_global_plan)
    writer.write_data = _write(writer.write_data)
    writer.finish = _finish(writer.finish)
