"""The begin and the commit of a save. Both are the same for a save by ranks and for a flush. Needs no torch.

    begin:   step-N there and whole? done -> damaged? quarantine -> room? -> mkdir .step-N.tmp-<id>/
    commit:  seal -> manifest.json, synced -> sync folder -> rename to step-N = COMMIT -> sync parent
    tidy:    `latest`, then prune: nothing that goes wrong here undoes the checkpoint

Two processes may write the same step at the same time, each in its own folder. One commits; the other finds it done.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from ...rundir.files.durable import Disk, ensure_dir, publish_dir, replace_file
from ...rundir.layout import committed_steps, step_name
from ...rundir.variables import RUN_DIR
from ..errors import CheckpointError, Damaged
from ..format import manifest as manifests
from ..format.manifest import Manifest
from ..nodes.fence import Fence
from . import retention, store

SUPERSEDED = "a later attempt went on from before it: a node that was lost has saved it afterwards"
_SPARE = 1 << 20
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


def now() -> str:
    """The time as it stands in a manifest: UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def begin(folder: Path, step: int, size: int, disk: Disk, label: str = "", fence: Fence | None = None) -> str | None:
    """The name of a fresh folder to write into. None if this step already has a whole checkpoint, which counts. OSError
    if the disk has no room for `size` bytes."""
    if label or str(folder.parent) == os.environ.get(RUN_DIR):
        # If the run's own folder was moved or removed, it is not made again.
        _make(folder, disk)
    else:
        ensure_dir(folder, disk)
    name = step_name(step)
    if os.path.lexists(folder / name):
        try:
            if not is_superseded(store.verify(folder / name), fence):
                return None
            retention.quarantine(folder, name, SUPERSEDED, disk)
        except Damaged as error:
            retention.quarantine(folder, name, str(error), disk)
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE:
        said = f"{os.strerror(errno.ENOSPC)}: a checkpoint needs {size + _SPARE} bytes and {free} are left"
        raise OSError(errno.ENOSPC, said)
    temporary = retention.temporary_name(step, label)
    disk.mkdir(folder / temporary)
    return temporary


def _make(folder: Path, disk: Disk) -> None:
    """`folder` exists, durably. FileNotFoundError if its parent does not."""
    if not folder.is_dir():
        disk.mkdir(folder)
        disk.sync_dir(folder.parent)


def commit(
    folder: Path,
    temporary: str,
    manifest: Manifest,
    seal: Callable[[], None],
    disk: Disk,
    fence: Fence | None = None,
) -> bool:
    """The finished files in `temporary` are the checkpoint of their step, durably. False if another process has
    committed a whole checkpoint of that step meanwhile. CheckpointError if its attempt may not commit it any more."""
    seal()
    final = folder / step_name(manifest.step)
    disk.create(folder / temporary / manifests.NAME, [manifests.encode(manifest)])
    if fence is not None and (why := fence.refusal(manifest.step)):
        raise CheckpointError(why)
    try:
        publish_dir(folder / temporary, final, disk)
    except OSError as error:
        if error.errno not in _TAKEN or (there := whole(final)) is None:
            raise
        if is_superseded(there, fence):
            retention.quarantine(folder, final.name, SUPERSEDED, disk)
            publish_dir(folder / temporary, final, disk)
            return True
        retention.discard(folder / temporary, disk)
        return False
    return True


def whole(path: Path) -> Manifest | None:
    """The manifest of the checkpoint `path` if it exists and every byte of it is as it was written."""
    try:
        return store.verify(path)
    except CheckpointError:
        return None


def is_superseded(manifest: Manifest, fence: Fence | None) -> bool:
    """Whether a later attempt has gone on from before the checkpoint of `manifest`."""
    return fence is not None and fence.lineage().supersedes(manifest.attempt, manifest.step)


def tidy(folder: Path, step: int, keep: int, disk: Disk) -> str | None:
    """`latest` names `step`, unless a newer step has been committed. At most `keep` checkpoints (at least two) are
    left. Returns what went wrong, or None. Called by one process, for a step that it has committed."""
    try:
        if step >= max(committed_steps(folder), default=step):
            replace_file(folder / store.LATEST, f"{step_name(step)}\n".encode(), disk)
        retention.prune(folder, keep, disk)
    except OSError as error:
        return str(error)
    return None
