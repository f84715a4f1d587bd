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
from typing import Any, TypeVar

import torch

from ...rundir.files.codec import encode
from ...rundir.files.durable import Buffer, Disk
from ..errors import CheckpointError
from ..format.manifest import Manifest, StoredFile, shard_name, table, tensors_of
from ..format.plan import ITEM_BYTES, Layout, Share, plan, total
from ..format.shard import Digest, Entry, entry_of, header
from ..group import Ranks
from ..nodes.fence import Fence
from ..state.packing import Packed
from ..state.tensors import bytes_of, flattened, is_plain
from . import retention
from .commit import begin, commit, now

T = TypeVar("T")

_PART_BYTES = 32 << 20
"""So much of a tensor that is not on the CPU, or not in C order, is copied at once."""


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
    layout: Layout | None = None
    """What the ranks have agreed on; None: each rank holds all tensors whole."""
    fence: Fence | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a save ended, the same on every rank. With `error` None the checkpoint is durable."""

    step: int
    bytes: int
    seconds: float
    error: str | None = None
    existed: bool = False


def shard_chunks(layout: Layout, shared: Packed, own: Packed, rank: int) -> Iterator[Buffer]:
    """The bytes of this rank's file, in order: its shares of the shared state, then all of its own state."""
    shares = layout.shares[rank]
    entries = [entry_of(share, layout.specs[share.name]) for share in shares]
    entries += [Entry(name, spec) for name, spec in own.specs.items()]
    yield header(entries, {"format": "pt", "rank": str(rank)}, {"state": encode(own.tree).decode()})
    for share in shares:
        yield from _share_chunks(shared.tensors[share.name], share)
    for name in own.specs:
        _alive, view = bytes_of(own.tensors[name])
        yield view


def _share_chunks(tensor: torch.Tensor, share: Share) -> Iterator[Buffer]:
    """The bytes of `share`; a tensor on a device comes here a part at a time."""
    size = tensor.element_size()
    if is_plain(tensor) and tensor.is_cpu:
        yield bytes_of(tensor)[1][share.start * size : (share.start + share.count) * size]
        return
    flat, most = flattened(tensor), max(1, _PART_BYTES // size)
    for start in range(share.start, share.start + share.count, most):
        _alive, view = bytes_of(flat[start : min(start + most, share.start + share.count)])
        yield view


def save(order: Order, ranks: Ranks, disk: Disk) -> Outcome:
    """`order` is committed on every rank, or has failed on every rank with the reason. If it failed, nothing of it is
    left, and older checkpoints are unchanged. All ranks call it at the same step."""
    began = time.monotonic()
    layout = order.layout or plan(order.shared.specs, ranks.world_size, order.shared.led)
    size = total(layout.specs)
    temporary = None
    try:
        temporary = ranks.lead(lambda: _told(begin, order.folder, order.step, size, disk, fence=order.fence))
        if temporary is None:
            return Outcome(order.step, size, time.monotonic() - began, existed=True)
        reports = ranks.exchange(_write(order, order.folder / temporary, layout, ranks.rank, disk))
        error = "; ".join(f"rank {rank}: {r['error']}" for rank, r in enumerate(reports) if "error" in r)
        if 0 < sum(report.get("lost", False) for report in reports) < len(reports):
            error += f"; {order.folder} must be on storage that all nodes share"
        if error:
            raise CheckpointError(error)
        manifest = _manifest(order, layout, reports, time.monotonic() - began)
        made = order.folder, str(temporary), manifest, order.seal, disk, order.fence
        ours = ranks.lead(lambda: _told(commit, *made))
    except CheckpointError as error:
        if ranks.rank == 0 and temporary is not None:
            retention.discard(order.folder / temporary, disk)
        return Outcome(order.step, size, time.monotonic() - began, error=str(error))
    return Outcome(order.step, manifest.bytes, time.monotonic() - began, existed=not ours)


def _write(order: Order, folder: Path, layout: Layout, rank: int, disk: Disk) -> dict[str, Any]:
    digest = Digest()
    chunks = shard_chunks(layout, order.shared, order.own, rank)
    mine = sum(share.count * ITEM_BYTES[layout.specs[share.name].dtype] for share in layout.shares[rank])
    try:
        _told(disk.create, folder / shard_name(rank), digest.through(chunks), mine + total(order.own.specs))
    except (OSError, CheckpointError) as error:
        return {"error": str(error), "lost": isinstance(error, FileNotFoundError)}
    stored = digest.stored()
    return {"bytes": stored.bytes, "block": stored.block, "blocks": stored.blocks}


def _told(action: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What `action` returns. OSError or CheckpointError for any error of it (no memory, on the host or a device): the
    others wait for this rank, and are to hear of it."""
    try:
        return action(*args, **kwargs)
    except (OSError, CheckpointError):
        raise
    except Exception as error:
        raise CheckpointError(f"{type(error).__name__}: {error}".removesuffix(": ")) from error


def _manifest(order: Order, layout: Layout, reports: list[dict[str, Any]], seconds: float) -> Manifest:
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
        tensors=tensors_of(table(layout)),
        files={
            shard_name(rank): StoredFile(report["bytes"], report["block"], tuple(report["blocks"]))
            for rank, report in enumerate(reports)
        },
    )
