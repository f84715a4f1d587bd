"""The folder of checkpoints, for readers: list them, load a manifest, verify one or all. Needs no torch.

    checkpoints/
      step-00000040/{manifest.json, rank0.safetensors, rank1.safetensors}     committed: the name is the promise
      .step-00000050.tmp-<id>/                                                being written, pruned, or left by a death
      latest                          the name of the newest, a hint: nothing depends on it
      quarantine/                     damaged ones, each with a text that says why
      superseded-1/                   moved aside by a run that started over

No name leads out of the folder. Only a plain folder with exactly the name of a step counts. Its files are opened
relative to it. A symbolic link is damage.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...rundir.layout import committed_steps, step_name, step_of
from ..errors import CheckpointError, Damaged, Unreadable
from ..format import manifest as manifests
from ..format.manifest import Manifest
from ..format.shard import Changed, Sink, read_shard

LATEST = "latest"
QUARANTINE = "quarantine"

_LINK = (errno.ELOOP, errno.ENOTDIR)


@contextmanager
def opened(path: Path, name: str) -> Iterator[int]:
    """A descriptor of the regular file `name` in the checkpoint `path`. Damaged if it is missing or a link, Unreadable
    if the system refuses it. Errors inside the block become the same two."""
    try:
        # Each open refuses links. O_NONBLOCK: a pipe in the place of a file must not block for ever.
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except OSError as error:
        if error.errno in _LINK:
            raise Damaged(f"{name} or its folder is a link") from None
        raise Unreadable(f"{name} cannot be opened: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Damaged(f"{name} is not a regular file")
        yield fd
    except OSError as error:
        raise Unreadable(f"{name} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)


def load_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint `path`, proved unchanged. Damaged or Unreadable."""
    with opened(path, manifests.NAME) as fd, os.fdopen(fd, "rb", closefd=False) as file:
        if os.fstat(fd).st_size > manifests.LARGEST:
            raise Damaged(f"{manifests.NAME} is larger than a manifest can be")
        manifest = manifests.decode(file.read(manifests.LARGEST))
    if step_name(manifest.step) != path.name:
        raise Damaged(f"{manifests.NAME} is that of step {manifest.step}")
    return manifest


def attempt_of(path: Path) -> int:
    """The attempt that made the checkpoint `path`; -1 if it had no supervisor, or its manifest does not say."""
    try:
        attempt = load_manifest(path).attempt
    except CheckpointError:
        return -1
    return -1 if attempt is None else attempt


def read_file(path: Path, manifest: Manifest, name: str, sink: Sink, everything: bool = False) -> dict[str, str]:
    """The metadata of the file `name`. Its entries are in the memory that `sink` gave, proved unchanged; with
    `everything`, all of the file is proved unchanged. Damaged or Unreadable; then what was read so far must not be
    used."""
    stored = manifest.files[name]
    with opened(path, name) as fd:
        size = os.fstat(fd).st_size
        if size != stored.bytes:
            raise Damaged(f"{name} has {size} bytes, its manifest says {stored.bytes}")
        try:
            return read_shard(fd, stored, sink, everything)
        except Changed:
            problem = f"{name} does not match its digest"
        except Damaged as error:
            problem = f"{name}: {error}"
    # Not raised above: it would keep the memory of the sink alive.
    raise Damaged(problem)


def verify(path: Path) -> Manifest:
    """The manifest of the checkpoint `path`, after every byte was read and found as written. Damaged or Unreadable."""
    manifest = load_manifest(path)
    for name in manifest.files:
        read_file(path, manifest, name, lambda entry: (), everything=True)
    return manifest


def check(path: Path) -> Manifest:
    """The manifest of the checkpoint `path`. Its files exist and have the right size; their content was not read."""
    manifest = load_manifest(path)
    for name, stored in manifest.files.items():
        with opened(path, name) as fd:
            if os.fstat(fd).st_size != stored.bytes:
                raise Damaged(f"{name} has {os.fstat(fd).st_size} bytes, its manifest says {stored.bytes}")
    return manifest


@dataclass(frozen=True, slots=True)
class Listed:
    """A committed checkpoint in the list: its manifest, or what is wrong with it."""

    step: int
    path: Path
    manifest: Manifest | None
    problem: str | None


def listing(folder: Path, look: Callable[[Path], Manifest] = check) -> list[Listed]:
    """Every committed checkpoint in `folder`, oldest first; `look` is load_manifest, check or verify."""
    found = []
    for step in committed_steps(folder):
        path = folder / step_name(step)
        try:
            found.append(Listed(step, path, look(path), None))
        except CheckpointError as error:
            found.append(Listed(step, path, None, str(error)))
    return found


def newest_good(folder: Path) -> Listed | None:
    """The newest checkpoint in `folder` that verifies, or None."""
    for step in reversed(committed_steps(folder)):
        path = folder / step_name(step)
        try:
            return Listed(step, path, verify(path), None)
        except CheckpointError:
            continue
    return None


def read_latest(folder: Path) -> int | None:
    """The step that `latest` names; None if there is no such file or it names no step."""
    try:
        fd = os.open(folder / LATEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return step_of(os.read(fd, 64).decode("ascii", "replace").strip())
        finally:
            os.close(fd)
    except OSError:
        return None
