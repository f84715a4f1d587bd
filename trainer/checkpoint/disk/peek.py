"""What a checkpoint holds, without its tensors, and a checkpoint for some parts only. Nothing is moved or restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...rundir.layout import committed_steps, step_name
from ..errors import CheckpointError, NoUsableCheckpoint
from ..format.manifest import NAME
from ..nodes.lineage import recorded
from ..state.per_rank import with_values
from .assembly import NO_PLACES, Loaded, Places
from .restore import SNAPSHOT, Tiers, load, newest, recall


@dataclass(frozen=True, slots=True)
class Peek:
    """A checkpoint, as far as it can be told without its state."""

    step: int
    """The number of steps that were done."""
    world_size: int
    names: tuple[str, ...]
    """The names of its tensors: model/0.weight, optimizer/state/0/exp_avg."""
    extra: Mapping[str, Any]
    """As restore() would give it, with this rank's values; None for one that no rank of this number has saved."""
    where: str


def _seen(loaded: Loaded, where: str) -> Peek:
    own = (loaded.own or {}).get("per_rank") or {}
    extra = with_values(loaded.shared.get("extra") or {}, own)
    manifest = loaded.manifest
    return Peek(manifest.step, manifest.world_size, tuple(manifest.tensors), extra, where)


def peek(tiers: Tiers, mode: str, rank: int) -> Peek | None:
    """The newest state in `tiers` that can be read, which restore() would take; None if there is none. A damaged one is
    left where it is."""
    tried: list[str] = []
    while mode != "never" and (name := newest(tiers, tried)) is not None:
        tried.append(name)
        try:
            if name.startswith(SNAPSHOT) and tiers.segment is not None:
                step = int(name.removeprefix(SNAPSHOT))
                loaded = recall(tiers.segment, step, tiers.run, rank, wanted=_is_extra)
            else:
                loaded = load(tiers.folder / name, rank, wanted=_is_extra)
        except (CheckpointError, OSError):
            continue
        manifest, order = loaded.manifest, tiers.rollback
        if tiers.home is not None and recorded(tiers.home).supersedes(manifest.attempt, manifest.step):
            continue
        if order is None or not order.covers(-1 if manifest.attempt is None else manifest.attempt, manifest.step):
            return _seen(loaded, loaded.where(tiers.folder))
    return None


def _is_extra(part: str) -> bool:
    return part == "extra"


def read(path: Path, wanted: frozenset[str], places: Places = NO_PLACES) -> tuple[Loaded, Peek]:
    """The checkpoint `path`, or the newest one in the folder or run `path`: what all ranks have alike of the parts
    `wanted`, and `extra`. NoUsableCheckpoint if there is none; Damaged, Unreadable or Misfit."""
    folder = path if (path / NAME).exists() else None
    if folder is None:
        path = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        steps = sorted(committed_steps(path), reverse=True)
        if not steps:
            raise NoUsableCheckpoint(f"{path} is no checkpoint, and no folder of checkpoints")
        folder = path / step_name(steps[0])
    loaded = load(folder, -1, places=places, wanted=lambda part: part in wanted or part == "extra")
    return loaded, _seen(loaded, f"checkpoint {folder}")
