"""What is in a checkpoint, tensor by tensor, from its manifest and the headers of its files. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..disk import store
from ..format.manifest import Manifest, StoredTensor, rank_of
from ..format.shard import Entry, Take


@dataclass(frozen=True, slots=True)
class Shown:
    """A tensor of a checkpoint. `kind` is replicated, sharded, or the rank that alone has it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    bytes: int
    placements: tuple[str, ...] = ()


def shown(path: Path) -> tuple[Manifest, list[Shown]]:
    """The manifest of the checkpoint `path`, and its tensors: those that all ranks share, then each rank's own.
    Damaged or Unreadable."""
    manifest = store.check(path)
    found = [_shared(name, stored) for name, stored in manifest.tensors.items()]
    for file in sorted(manifest.files, key=rank_of):
        found += _own(path, manifest, file)
    return manifest, found


def _shared(name: str, stored: StoredTensor) -> Shown:
    kind = "sharded" if stored.placements else "replicated"
    return Shown(name, stored.dtype, stored.shape, kind, stored.spec.bytes, stored.placements)


def _own(path: Path, manifest: Manifest, file: str) -> Iterator[Shown]:
    shared = {piece.key for stored in manifest.tensors.values() for piece in stored.pieces if piece.file == file}
    entries: list[Entry] = []

    def sink(entry: Entry) -> list[Take]:
        entries.append(entry)
        return []

    # No entry is taken, so only the header is read.
    store.read_file(path, manifest, file, sink)
    for entry in entries:
        if entry.key not in shared:
            yield Shown(entry.key, entry.spec.dtype, entry.spec.shape, f"rank {rank_of(file)}", entry.spec.bytes)


def loss_of(metrics: Path, step: int) -> float | None:
    """The loss that the run noted for its `step`, if it did."""
    try:
        with metrics.open("rb") as lines:
            for line in lines:
                found = json.loads(line)
                if isinstance(found, dict) and found.get("step") == step:
                    loss = found.get("loss")
                    return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None
    except (OSError, ValueError):
        pass
    return None
