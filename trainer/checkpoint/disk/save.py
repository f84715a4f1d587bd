"""Writes a checkpoint. A reader finds the old one or the new one, never a part of one.

all ranks   capture: what to write                                          (state.py)
rank 0      room on the disk? -> mkdir .step-N.tmp-<id>/ -> its name goes to every rank
all ranks   write rank<r>.safetensors, digesting -> fsync
all ranks   exchange (digest, size or error): one failure and the folder is removed, the save has failed everywhere
rank 0      manifest.json -> fsync -> fsync folder -> rename to step-N = COMMIT -> fsync parent
all ranks   learn the outcome
rank 0      `latest`, then prune: nothing that goes wrong here undoes the checkpoint
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...rundir.files.codec import encode
from ...rundir.files.durable import Buffer, Disk
from ..errors import CheckpointError
from ..format.manifest import Manifest, StoredFile, shard_name, stored
from ..format.plan import Share, Shares, plan
from ..format.shard import Digest, Entry, entry_of, header
from ..group import Ranks
from ..state.packing import Packed
from ..state.tensors import bytes_of
from . import retention
from .commit import begin, commit, now


@dataclass(frozen=True, slots=True)
class Order:
    """What is saved, and where. `seal` runs on rank 0 before the commit, and makes other files durable with it."""

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


def shard_chunks(shares: tuple[Share, ...], shared: Packed, own: Packed, rank: int) -> Iterator[Buffer]:
    """The bytes of this rank's file, in order: its shares of the shared state, then all of its own state."""
    entries = [entry_of(share, shared.specs[share.name]) for share in shares]
    entries += [Entry(name, spec) for name, spec in own.specs.items()]
    yield header(entries, {"format": "pt", "rank": str(rank), "state": encode(own.tree).decode()})
    for share in shares:
        _alive, view = bytes_of(shared.tensors[share.name], share)
        yield view
    for name, spec in own.specs.items():
        _alive, view = bytes_of(own.tensors[name], Share(name, 0, spec.count))
        yield view


def save(order: Order, ranks: Ranks, disk: Disk) -> Outcome:
    """`order` is committed on every rank, or has failed on every rank with the reason. If it failed, nothing of it is
    left, and older checkpoints are unchanged. All ranks call it at the same step."""
    began = time.monotonic()
    shares = plan(order.shared.specs, ranks.world_size, led=order.shared.led)
    size = sum(spec.bytes for spec in order.shared.specs.values())
    temporary = None
    try:
        temporary = ranks.lead(lambda: begin(order.folder, order.step, size, disk))
        if temporary is None:
            return Outcome(order.step, size, time.monotonic() - began, existed=True)
        reports = ranks.exchange(_write(order, order.folder / temporary, shares[ranks.rank], ranks.rank, disk))
        error = "; ".join(f"rank {rank}: {r['error']}" for rank, r in enumerate(reports) if "error" in r)
        if error:
            raise CheckpointError(error)
        manifest = _manifest(order, shares, reports, time.monotonic() - began)
        ours = ranks.lead(lambda: commit(order.folder, str(temporary), manifest, order.seal, disk))
    except CheckpointError as error:
        if ranks.rank == 0 and temporary is not None:
            retention.discard(order.folder / temporary, disk)
        return Outcome(order.step, size, time.monotonic() - began, error=str(error))
    return Outcome(order.step, manifest.bytes, time.monotonic() - began, existed=not ours)


def _write(order: Order, folder: Path, shares: tuple[Share, ...], rank: int, disk: Disk) -> dict[str, Any]:
    digest = Digest()
    chunks = shard_chunks(shares, order.shared, order.own, rank)
    try:
        disk.create(folder / shard_name(rank), digest.through(chunks))
    except OSError as error:
        return {"error": str(error)}
    return {"bytes": digest.bytes, "digest": digest.hex}


def _manifest(order: Order, shares: Shares, reports: list[dict[str, Any]], seconds: float) -> Manifest:
    return Manifest(
        step=order.step,
        world_size=len(reports),
        run=order.run,
        attempt=order.attempt,
        torch=torch.__version__,
        created=now(),
        save_seconds=round(seconds, 6),
        bytes=sum(report["bytes"] for report in reports),
        state=order.shared.tree,
        tensors=stored(order.shared.specs, shares),
        files={shard_name(rank): StoredFile(**report) for rank, report in enumerate(reports)},
    )
