"""Write a checkpoint so that a reader finds the old one or the new one, never part of one.

all ranks   capture: what to write                                          (state.py)
rank 0      room on the disk? -> mkdir .step-N.tmp-<id>/ -> its name goes to every rank
all ranks   write rank<r>.safetensors, digesting -> fsync
all ranks   exchange (digest, size or error): one failure and the folder is removed, the save has failed everywhere
rank 0      manifest.json -> fsync -> fsync folder -> rename to step-N = COMMIT -> fsync parent
all ranks   learn the outcome
rank 0      `latest`, then prune: nothing that goes wrong here undoes the checkpoint
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import manifest as manifests
from trainer.checkpoint import retention, store
from trainer.checkpoint.errors import CheckpointError, Damaged
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.manifest import Manifest, Piece, StoredFile, StoredTensor, shard_name
from trainer.checkpoint.plan import Share, Spec, plan
from trainer.checkpoint.shard import Digest, Entry, header
from trainer.checkpoint.state import Packed
from trainer.checkpoint.tensors import bytes_of
from trainer.rundir.durable import Buffer, Disk, publish_dir, replace_file
from trainer.rundir.layout import step_name

_SPARE = 1 << 20


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be saved, and where. `seal` runs on rank 0 before the commit: what must be durable with it, is."""

    folder: Path
    step: int
    shared: Packed
    own: Packed
    run: str | None = None
    attempt: int | None = None
    seal: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a save ended, the same on every rank. With `error` None the checkpoint is durable."""

    step: int
    bytes: int
    seconds: float
    error: str | None = None
    existed: bool = False


def _key(share: Share, spec: Spec) -> str:
    return share.name if share.count == spec.count else f"{share.name}@{share.start}"


def _entry(share: Share, spec: Spec) -> Entry:
    # A whole tensor keeps its shape, so that any reader of safetensors sees it as it was.
    return Entry(_key(share, spec), spec if share.count == spec.count else Spec(spec.dtype, (share.count,)))


def shard_chunks(shares: tuple[Share, ...], shared: Packed, own: Packed, rank: int) -> Iterator[Buffer]:
    """The bytes of this rank's file, in order: its shares of the shared state, and all that is its own."""
    entries = [_entry(share, shared.specs[share.name]) for share in shares]
    entries += [Entry(name, spec) for name, spec in own.specs.items()]
    yield header(entries, {"format": "pt", "rank": str(rank), "state": json.dumps(own.tree)})
    for share in shares:
        _alive, view = bytes_of(shared.tensors[share.name], share)
        yield view
    for name, spec in own.specs.items():
        _alive, view = bytes_of(own.tensors[name], Share(name, 0, spec.count))
        yield view


def save(order: Order, ranks: Ranks, disk: Disk) -> Outcome:
    """`order` is committed on every rank, or has failed on every rank with the reason, and then nothing of it is left and
    older checkpoints are as they were. Called by all ranks at the same step."""
    began = time.monotonic()
    shares = plan(order.shared.specs, ranks.world_size)
    size = sum(spec.bytes for spec in order.shared.specs.values())
    try:
        temporary = ranks.lead(lambda: _begin(order, size, disk))
        if temporary is None:
            return Outcome(order.step, size, time.monotonic() - began, existed=True)
        reports = ranks.exchange(_write(order, order.folder / temporary, shares[ranks.rank], ranks.rank, disk))
        error = "; ".join(f"rank {rank}: {r['error']}" for rank, r in enumerate(reports) if "error" in r)
        if error:
            raise CheckpointError(error)
        manifest = _manifest(order, shares, reports, time.monotonic() - began)
        ranks.lead(lambda: _commit(order, order.folder / temporary, manifest, disk))
    except CheckpointError as error:
        if ranks.rank == 0:
            for path in order.folder.glob(f".{step_name(order.step)}.tmp-*"):
                retention.discard(path, disk)
        return Outcome(order.step, size, time.monotonic() - began, error=str(error))
    return Outcome(order.step, manifest.bytes, time.monotonic() - began)


def _begin(order: Order, size: int, disk: Disk) -> str | None:
    """The name of a fresh folder to write into; None if this step has a whole checkpoint already."""
    retention.ensure_dir(order.folder, disk)
    name = step_name(order.step)
    if (order.folder / name).is_symlink() or (order.folder / name).exists():
        try:
            store.verify(order.folder / name)
            return None
        except Damaged as error:
            retention.quarantine(order.folder, name, str(error), disk)
    free = shutil.disk_usage(order.folder).free
    if free < size + _SPARE:
        raise OSError(errno.ENOSPC, f"a checkpoint needs {size + _SPARE} bytes and the disk has {free} left")
    temporary = retention.temporary_name(order.step)
    disk.mkdir(order.folder / temporary)
    return temporary


def _write(order: Order, folder: Path, shares: tuple[Share, ...], rank: int, disk: Disk) -> dict[str, Any]:
    digest = Digest()
    chunks = shard_chunks(shares, order.shared, order.own, rank)
    try:
        disk.create(folder / shard_name(rank), digest.through(chunks))
    except OSError as error:
        return {"error": str(error)}
    return {"bytes": digest.bytes, "digest": digest.hex}


def _manifest(
    order: Order, shares: tuple[tuple[Share, ...], ...], reports: list[dict[str, Any]], seconds: float
) -> Manifest:
    pieces: dict[str, list[Piece]] = {name: [] for name in order.shared.specs}
    for rank, own in enumerate(shares):
        for share in own:
            key = _key(share, order.shared.specs[share.name])
            pieces[share.name].append(Piece(shard_name(rank), key, share.start, share.count))
    return Manifest(
        step=order.step,
        world_size=len(reports),
        run=order.run,
        attempt=order.attempt,
        torch=torch.__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        save_seconds=round(seconds, 6),
        bytes=sum(report["bytes"] for report in reports),
        state=order.shared.tree,
        tensors={
            name: StoredTensor(spec.dtype, spec.shape, tuple(pieces[name])) for name, spec in order.shared.specs.items()
        },
        files={shard_name(rank): StoredFile(**report) for rank, report in enumerate(reports)},
    )


def _commit(order: Order, temporary: Path, manifest: Manifest, disk: Disk) -> None:
    order.seal()
    disk.create(temporary / manifests.NAME, [manifests.encode(manifest)])
    publish_dir(temporary, order.folder / step_name(order.step), disk)


def tidy(folder: Path, step: int, keep: int, disk: Disk) -> str | None:
    """`latest` names `step`, and at most `keep` checkpoints (never under two) are left; or what went wrong. Rank 0 only,
    after a save has committed."""
    try:
        replace_file(folder / store.LATEST, f"{step_name(step)}\n".encode(), disk)
        retention.prune(folder, keep, disk)
    except OSError as error:
        return str(error)
    return None
