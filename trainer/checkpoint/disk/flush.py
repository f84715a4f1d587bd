"""The process that makes a durable checkpoint from a snapshot while training goes on.

    start.py checkpoint.disk.flush SEGMENT CHECKPOINTS --step N|newest [--keep K] [--seal FILE] [--nice 10]

It is a fork of the fork server, or a process without torch if there is none that has time. It prints one JSON line.
Exit status 0: {"step", "bytes", "seconds"} when the checkpoint is durable, or {"step", "existed": true} if there was
nothing to do. Exit status 1: {"step", "error"}.

    pin (so that no rank writes over it)
    mkdir .step-N.tmp-flush-<id>/, locked  ->  each rank's file: read, digest, write, sync
    is the snapshot unchanged?  ->  sync FILE  ->  manifest, synced  ->  rename = COMMIT  ->  sync parent
    `latest`, prune  ->  unpin, also when anything above went wrong
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...names import ours_alone
from ...rundir.files.durable import DISK, Disk
from ...rundir.layout import RunDir, committed_steps, step_name
from ...rundir.machine import priority
from ..errors import CheckpointError, Damaged
from ..format.manifest import Manifest, StoredFile, rank_of
from ..format.shard import CHUNK, Digest, check_entries, entries_in
from ..memory import snapshots
from ..memory.snapshots import Snapshot
from ..nodes.fence import Fence
from ..nodes.lineage import recorded
from . import retention
from .commit import begin, commit, is_superseded, tidy, whole
from .description import describe, payload


def flush(
    segment: Path, folder: Path, step: int | None, keep: int, seal: Path | None, disk: Disk = DISK
) -> dict[str, Any]:
    """The snapshot of `step` (None: the newest) is a durable checkpoint in `folder`, and is no longer pinned."""
    began = time.monotonic()
    snapshot = snapshots.find(segment, step, lineage=recorded(RunDir(folder.parent)))
    found = snapshot.step if snapshot else step
    try:
        if snapshot is None:
            raise CheckpointError(
                f"no snapshot of step {step} that all ranks have" if step is not None else "no snapshot"
            )
        snapshots.pin(snapshot)
        if not _flushed(snapshot, folder, step is None, seal, disk):
            return {"step": found, "existed": True}
        snapshots.flushed(snapshot)
        problem = tidy(folder, snapshot.step, keep, disk)
    except (OSError, CheckpointError) as error:
        return {"step": found, "error": str(error)}
    finally:
        if found is not None:
            snapshots.clear_pins(segment, found)
    done = {"step": found, "bytes": snapshot.bytes, "seconds": round(time.monotonic() - began, 6)}
    return {**done, "warning": f"tidying up failed: {problem}"} if problem else done


def _flushed(snapshot: Snapshot, folder: Path, only_newer: bool, seal: Path | None, disk: Disk) -> bool:
    """The snapshot is a checkpoint in `folder`. False if it was one before."""
    fence = Fence(RunDir(folder.parent), snapshot.attempt)
    newer = (whole(folder / step_name(s)) for s in committed_steps(folder) if s >= snapshot.step) if only_newer else ()
    if any(there is not None and not is_superseded(there, fence) for there in newer):
        return False
    began = time.monotonic()
    temporary = begin(folder, snapshot.step, snapshot.bytes, disk, retention.FLUSHED, fence)
    if temporary is None:
        return False
    try:
        with retention.in_use(folder / temporary):
            manifest = describe(snapshot)
            files = {name: _copied(snapshot, manifest, name, folder / temporary, disk) for name in manifest.files}
            seconds = round(time.monotonic() - began, 6)
            manifest = replace(manifest, files=files, save_seconds=seconds)
            if not snapshots.unchanged(snapshot):
                raise CheckpointError(f"the snapshot of step {snapshot.step} was written over while it was read")
            return commit(folder, temporary, manifest, lambda: _sync(seal, disk), disk, fence)
    except (OSError, CheckpointError):
        retention.discard(folder / temporary, disk)
        raise


def _copied(snapshot: Snapshot, manifest: Manifest, name: str, folder: Path, disk: Disk) -> StoredFile:
    digest, rank = Digest(), rank_of(name)
    with payload(snapshot, rank) as view:
        # A file that cannot be read must not become a checkpoint: an older one would be pruned for it.
        entries, _ = entries_in(view)
        check_entries(manifest, name, [entry for entry, _ in entries])
    size = snapshot.record(rank).payload
    disk.create(folder / name, digest.through(_chunks(snapshot.path(rank), size)), size)
    return digest.stored()


def _chunks(path: Path, size: int) -> Iterator[memoryview]:
    """The first `size` bytes of a file, each time in the same memory, where they stay in the CPU's cache until they are
    digested and written. To map the file would cost a page fault for every few pages."""
    memory = memoryview(bytearray(min(CHUNK, size)))
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        at = 0
        while at < size:
            got = os.preadv(fd, [memory[: min(len(memory), size - at)]], at)
            if got == 0:
                raise Damaged(f"{path} is shorter than its record says")
            yield memory[:got]
            at += got
    finally:
        os.close(fd)


def _sync(path: Path | None, disk: Disk) -> None:
    """`path` and its content are durable, also if another process wrote them."""
    if path is None or not path.exists():
        return
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        disk.fsync(fd, path)
    finally:
        os.close(fd)
    disk.sync_dir(path.parent)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Makes a durable checkpoint of a snapshot in shared memory.")
    parser.add_argument("segment", type=Path)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--step", type=lambda text: None if text == "newest" else int(text), default=None)
    parser.add_argument("--keep", type=int, default=3)
    parser.add_argument("--seal", type=Path)
    parser.add_argument("--nice", type=int, default=10)
    options = parser.parse_args(arguments)
    ours_alone()
    priority.lower(options.nice)
    outcome = flush(options.segment, options.checkpoints, options.step, options.keep, options.seal)
    print(json.dumps(outcome), flush=True)
    return 1 if "error" in outcome else 0
