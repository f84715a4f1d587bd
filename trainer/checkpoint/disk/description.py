"""The manifest of a snapshot, made from its sidecar: as it would be on disk, but without digests. Needs no torch."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, Protocol

from ...rundir.files.codec import decode
from ..errors import Damaged
from ..format.manifest import Manifest, StoredFile, check, shard_name, tensors_of
from ..memory.snapshots import Snapshot
from .commit import now


class Mapped(Protocol):
    """Files that are mapped already."""

    def file(self, path: Path, size: int) -> memoryview | None: ...


def describe(snapshot: Snapshot) -> Manifest:
    """The manifest of `snapshot`, with files without digests. Damaged if its sidecar is not valid."""
    record = snapshot.record(0)
    try:
        with snapshot.path(0).open("rb") as file:
            if record.payload + record.sidecar > os.fstat(file.fileno()).st_size:
                raise ValueError("it is shorter than its record says")
            file.seek(record.payload)
            about = decode(file.read(record.sidecar), dict[str, Any])
        manifest = Manifest(
            step=snapshot.step,
            world_size=snapshot.world_size,
            run=about["run"],
            attempt=about["attempt"],
            torch=about["torch"],
            created=now(),
            save_seconds=0.0,
            bytes=snapshot.bytes,
            state=about["state"],
            tensors=tensors_of(about["tensors"]),
            files={shard_name(r): StoredFile(snapshot.record(r).payload) for r in range(snapshot.world_size)},
        )
        check(manifest)
        return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its description cannot be read: {error!r}") from None


def payload(snapshot: Snapshot, rank: int, mapped: Mapped | None = None) -> memoryview:
    """The bytes of the file of `rank`, mapped here or before, as `mapped`. Damaged if some are missing, OSError if they
    cannot be read."""
    if mapped is not None:
        known = mapped.file(snapshot.path(rank), snapshot.record(rank).payload)
        if known is not None:
            return known
    fd = os.open(snapshot.path(rank), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        memory = mmap.mmap(fd, snapshot.record(rank).payload, prot=mmap.PROT_READ)
    except (ValueError, OverflowError) as error:
        raise Damaged(f"the snapshot of rank {rank} is shorter than its record says") from error
    finally:
        os.close(fd)
    return memoryview(memory)
