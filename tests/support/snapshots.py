"""Snapshots in shared memory, made as the memory tier makes them."""

from __future__ import annotations

from pathlib import Path

from tests.support.jobs import state_of
from trainer.checkpoint.format.plan import plan
from trainer.checkpoint.memory.image import Image, copy_here
from trainer.checkpoint.memory.place import Place
from trainer.checkpoint.memory.segment import Segment
from trainer.checkpoint.memory.sidecar import Sidecars
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.state import capture_rank


def snapshot_of(folder: Path, step: int, world_size: int = 2, pin: bool = False) -> None:
    """All ranks' snapshot of state_of(step), as the memory tier takes it; with `pin` it is promised to a flush."""
    shared = pack(state_of(step))
    for rank in range(world_size):
        own = capture_rank(rank)
        image = Image(shared, plan(shared.specs, world_size), rank, frozenset(shared.tensors))
        header = image.header(own)
        place = Place(folder, rank, world_size, 0, "run")
        sidecar = Sidecars(place).text(shared.tree, image.layout) if rank == 0 else b""
        writer = Segment(folder, rank, world_size, 0)
        buffer = writer.begin(image.payload(header, own) + len(sidecar), step if pin else None)
        assert buffer is not None
        image.fill(buffer, header, own, sidecar, lambda buffer, memory, pairs, own: copy_here(pairs + own))
        writer.commit(buffer, step, image.payload(header, own), len(sidecar))
