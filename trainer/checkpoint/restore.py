"""Find the newest checkpoint that every rank can read whole, and go on from it.

    rank 0      sweep what dead attempts left; name a candidate, newest first
    all ranks   read it, digesting the bytes as they are parsed -> exchange (manifest's digest, problem)
    all good    it is the one
    any bad     rank 0 moves it to quarantine/ -> the next older one

Ranks never choose alone, and only rank 0 moves anything. Step 0 is only for a run that never had a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import retention, store, tensors, tree
from trainer.checkpoint.errors import Damaged, NoUsableCheckpoint, StateError, Unreadable
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.manifest import Manifest, shard_name
from trainer.checkpoint.shard import Entry
from trainer.rundir.durable import Disk

MODES = ("auto", "never", "must")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint in memory, every byte of it as written. `own` is None for a rank that did not exist then."""

    name: str
    manifest: Manifest
    shared: dict[str, Any]
    own: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Bad:
    """A checkpoint that was passed over. `moved_to` is None if it was left where it is."""

    path: Path
    reason: str
    moved_to: Path | None


def load(path: Path, rank: int) -> Loaded:
    """The checkpoint `path` as `rank` needs it; Damaged or Unreadable, and nothing of it may be used."""
    manifest = store.load_manifest(path)
    try:
        return _load(path, manifest, rank)
    except StateError as error:
        raise Unreadable(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its state is not one: {error!r}") from None


def _load(path: Path, manifest: Manifest, rank: int) -> Loaded:
    shared = {name: tensors.empty(stored.spec) for name, stored in manifest.tensors.items()}
    homes: dict[tuple[str, str], memoryview] = {}
    for name, stored in manifest.tensors.items():
        view, size = tensors.view_of(shared[name]), shared[name].element_size()
        for piece in stored.pieces:
            homes[piece.file, piece.key] = view[piece.start * size : (piece.start + piece.count) * size]
    own: dict[str, torch.Tensor] = {}
    own_tree: str | None = None
    for file in manifest.files:
        mine = file == shard_name(rank)

        def sink(entry: Entry, file: str = file, mine: bool = mine) -> memoryview | None:
            if (home := homes.pop((file, entry.key), None)) is not None:
                return home
            if not mine:
                return None
            own[entry.key] = tensors.empty(entry.spec)
            return tensors.view_of(own[entry.key])

        metadata = store.read_file(path, manifest, file, sink)
        if mine:
            own_tree = metadata["state"]
    if homes:
        raise Damaged(f"{next(iter(homes))[1]} is in no file")
    return Loaded(
        name=path.name,
        manifest=manifest,
        shared=tree.decode(manifest.state, shared.__getitem__),
        own=None if own_tree is None else tree.decode(json.loads(own_tree), own.__getitem__),
    )


def _attempt(path: Path, rank: int) -> tuple[Loaded | None, dict[str, Any]]:
    try:
        loaded = load(path, rank)
    except Damaged as error:
        return None, {"problem": str(error), "damaged": True}
    except Unreadable as error:
        return None, {"problem": str(error), "damaged": False}
    return loaded, {"digest": loaded.manifest.digest}


def _problem(reports: list[Mapping[str, Any]]) -> tuple[str, bool] | None:
    """Why the ranks cannot use it, and whether it is damaged; None if they all can."""
    bad = [(rank, report) for rank, report in enumerate(reports) if "problem" in report]
    for rank, report in sorted(bad, key=lambda item: not item[1]["damaged"]):
        text = report["problem"] if len(bad) == len(reports) else f"rank {rank}: {report['problem']}"
        return text, report["damaged"]
    if len({report["digest"] for report in reports}) > 1:
        return "ranks do not see the same manifest; is the folder on a disk that all of them share?", False
    return None


def _prepare(folder: Path, mode: str, disk: Disk) -> str | None:
    retention.sweep(folder, disk)
    if mode != "never" or not folder.is_dir():
        return None
    aside = retention.start_over(folder, disk)
    return str(aside) if aside else None


def _next(folder: Path, tried: list[str]) -> str | None:
    names = [name for name in retention.held(folder) if name not in tried]
    return names[-1] if names else None


def _set_aside(folder: Path, name: str, reason: str, damaged: bool, disk: Disk) -> str | None:
    if not damaged:
        return None
    try:
        return str(retention.quarantine(folder, name, reason, disk))
    except OSError:
        return None  # on a read-only disk it is passed over where it lies


def restore(
    folder: Path, mode: str, ranks: Ranks, disk: Disk, on_bad: Callable[[Bad], None] = lambda bad: None
) -> Loaded | None:
    """The newest checkpoint in `folder` that all ranks read whole, the same on every rank; None if there never was one.
    `on_bad` hears of each that was passed over. NoUsableCheckpoint if there were some and none is good, or if mode is
    "must" and there is none; after mode "never" all there were have been moved aside."""
    ranks.lead(lambda: _prepare(folder, mode, disk))
    tried: list[str] = []
    while (name := ranks.lead(lambda: _next(folder, tried))) is not None:
        tried.append(name)
        loaded, report = _attempt(folder / name, ranks.rank)
        problem = _problem(ranks.exchange(report))
        if problem is None:
            return loaded
        loaded = None
        reason, damaged = problem
        moved = ranks.lead(lambda n=name, r=reason, d=damaged: _set_aside(folder, n, r, d, disk))  # type: ignore[misc]
        on_bad(Bad(folder / name, reason, Path(moved) if moved else None))
    lost = ranks.lead(lambda: retention.ever_held(folder))
    if lost:
        raise NoUsableCheckpoint(
            f"none of the checkpoints in {folder} can be used: {', '.join(lost)}; bring a good one back, or start over "
            "with resume=never, which moves them aside"
        )
    if mode == "must":
        raise NoUsableCheckpoint(f"there is no checkpoint in {folder}, and resume=must asks for one")
    return None
