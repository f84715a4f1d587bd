"""Finds the newest state, in memory or on disk, that every rank can read whole. The run goes on from it.

    rank 0      sweep what dead attempts left; name a candidate, newest first: a snapshot if newer than any checkpoint
    (several nodes: those that do not have the snapshot get it from one that has)
    all ranks   read it, digesting the bytes as they are parsed -> exchange (manifest's digest, problem)
    all good    it is the one
    any bad     rank 0 moves it to quarantine/ (a snapshot is forgotten) -> the next older one

No rank chooses alone, and only rank 0 moves anything. Only a run that never had a checkpoint starts at step 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash

from ...rundir.files.codec import encode
from ...rundir.files.durable import Disk
from ...rundir.layout import RunDir, committed_steps, step_name, step_of
from ...rundir.records.rollback import Rollback
from ..errors import CheckpointMismatch, Damaged, Misfit, NoUsableCheckpoint, Unreadable
from ..format import boxes
from ..format.manifest import StoredTensor, shard_name
from ..format.plan import Spec
from ..format.shard import Sink, entries_in, misfit
from ..group import Ranks
from ..memory import snapshots
from ..nodes.holdings import Holdings, bring, held
from ..nodes.lineage import NONE, recorded
from . import retention, store
from .assembly import NO_PLACES, Lent, Loaded, Places, Wanted, assemble
from .commit import SUPERSEDED
from .description import Mapped, describe, payload

MODES = ("auto", "never", "must")
SNAPSHOT = "snapshot of step "
_WENT_BACK = "the run went back to before it, because of what came after it"


@dataclass(frozen=True, slots=True)
class Bad:
    """A checkpoint that could not be used. `moved_to` is None if it was left in its place. Without a path it is a
    snapshot."""

    path: Path | None
    reason: str
    moved_to: Path | None


class Lending(Protocol):
    """Tensors of snapshots that whoever takes them copies from shared memory."""

    @property
    def mapped(self) -> Mapped | None: ...

    def lent(self, name: str, spec: Spec, content: memoryview) -> torch.Tensor | None: ...


@dataclass(frozen=True, slots=True)
class Tiers:
    """Where to look: the folder of checkpoints and, if there is one, the segment with the snapshots of `run`. States
    that `rollback` covers are ignored."""

    folder: Path
    segment: Path | None = None
    run: str | None = None
    rollback: Rollback | None = None
    home: RunDir | None = None
    """The run's folder: what its attempts went on from is recorded there."""
    places: Places | None = None
    """What each rank has of a tensor that is sharded here."""
    lending: Lending | None = None
    """What may be lent as it lies in shared memory."""
    wanted: Wanted = None
    """Which parts are read; None: all."""


def load(
    path: Path, rank: int, world_size: int | None = None, places: Places = NO_PLACES, wanted: Wanted = None
) -> Loaded:
    """The checkpoint `path` as `rank` needs it. Damaged, Unreadable or Misfit; then no part of it may be used."""
    # Sizes are compared before memory is taken for what a manifest promises.
    manifest = store.check(path)
    read = functools.partial(store.read_file, path, manifest)
    return assemble(path.name, manifest, rank, read, world_size, places, wanted)


def recall(
    segment: Path,
    step: int,
    run: str | None,
    rank: int,
    world_size: int | None = None,
    places: Places = NO_PLACES,
    wanted: Wanted = None,
    lending: Lending | None = None,
    attempt: int | None = None,
) -> Loaded:
    """The snapshot of `step` as `rank` needs it; its world may have another size. With `attempt`, the one that it has
    made; another node may have it, too. Else Damaged."""
    snapshot = snapshots.find(segment, step, attempt)
    if snapshot is None:
        raise Damaged("it is gone")
    manifest = describe(snapshot)
    if manifest.run != run:
        raise Damaged(f"it belongs to another run, {manifest.run}")
    mapped = lending.mapped if lending else None
    files = {shard_name(r): payload(snapshot, r, mapped) for r in range(snapshot.world_size)}

    def read(file: str, sink: Sink) -> dict[str, str]:
        return _taken(files[file], sink)

    lent = _lender(lending, files) if lending else lambda name, stored: None
    try:
        loaded = assemble(f"{SNAPSHOT}{step}", manifest, rank, read, world_size, places, wanted, lent)
    except Misfit as error:
        raise Damaged(str(error)) from None  # there is no digest that could tell
    if not snapshots.unchanged(snapshot):
        raise Damaged("it was written over while it was read")
    identity = "-".join(str(record.serial) for _, record in snapshot.places)
    if attempt is not None:
        # Each node has buffers of its own. Rank 0 has described the snapshot for all.
        identity = f"{attempt}-{xxhash.xxh3_128_hexdigest(encode(manifest.state))}"
    return replace(loaded, manifest=replace(manifest, digest=identity), source="memory")


def _lender(lending: Lending, files: Mapping[str, memoryview]) -> Lent:
    entries = {(name, entry.key): (entry, content) for name in files for entry, content in entries_in(files[name])[0]}

    def lent(name: str, stored: StoredTensor) -> torch.Tensor | None:
        if len(stored.pieces) != 1 or stored.pieces[0].box != boxes.whole(stored.shape):
            return None
        (piece,) = stored.pieces
        entry, content = entries.get((piece.file, piece.key), (None, memoryview(b"")))
        # What does not fit is found when it is read.
        return None if misfit(piece, stored, entry) else lending.lent(name, stored.spec, content)

    return lent


def _taken(file: memoryview, sink: Sink) -> dict[str, str]:
    entries, metadata = entries_in(file)
    for entry, content in entries:
        for start, view in sink(entry):
            view[:] = content[start : start + len(view)]
    return metadata


def _attempt(tiers: Tiers, name: str, ranks: Ranks, holdings: Holdings | None) -> tuple[Loaded | None, dict[str, Any]]:
    here = ranks.rank, ranks.world_size, tiers.places or NO_PLACES
    of: int | None = None
    if name.startswith(SNAPSHOT) and tiers.segment and holdings is not None:
        whole = holdings.of(int(name.removeprefix(SNAPSHOT)))
        problem = "it is gone" if whole is None else bring(tiers.segment, whole, holdings, ranks)
        if whole is None or problem is not None:
            return None, {"problem": problem, "damaged": False}
        of = whole.attempt
    try:
        if name.startswith(SNAPSHOT) and tiers.segment:
            step = int(name.removeprefix(SNAPSHOT))
            given = tiers.wanted, tiers.lending, of
            loaded = recall(tiers.segment, step, tiers.run, *here, *given)
        else:
            loaded = load(tiers.folder / name, *here, wanted=tiers.wanted)
    except Damaged as error:
        lost = not name.startswith(SNAPSHOT) and not (tiers.folder / name).exists()
        return None, {"problem": str(error), "damaged": True, "lost": lost}
    except (Unreadable, Misfit, OSError) as error:
        return None, {"problem": str(error), "damaged": False, "misfit": isinstance(error, Misfit)}
    return loaded, {"digest": loaded.manifest.digest}


def _problem(reports: list[Mapping[str, Any]]) -> tuple[str, bool] | None:
    """Why the ranks cannot use a state, and whether it is damaged; None if all of them can use it."""
    lost = [rank for rank, report in enumerate(reports) if report.get("lost")]
    if 0 < len(lost) < len(reports):
        return f"rank {lost[0]} does not find it; the folder must be on storage that all nodes share", False
    bad = [(rank, report) for rank, report in enumerate(reports) if "problem" in report]
    for rank, report in sorted(bad, key=lambda item: not item[1]["damaged"]):
        text = report["problem"] if len(bad) == len(reports) else f"rank {rank}: {report['problem']}"
        return text, report["damaged"]
    if len({report["digest"] for report in reports}) > 1:
        return "ranks do not see the same manifest; is the folder on a disk that all of them share?", False
    return None


def _prepare(tiers: Tiers, mode: str, disk: Disk, leads: bool) -> list[tuple[str, str, str]]:
    """On each node: its memory holds nothing that the run must not go on from. On the one that `leads`, nor does the
    folder. What was moved aside: the name, where it is now, and why."""
    moved = []
    if leads:
        retention.sweep(tiers.folder, disk)
        moved = _put_aside(tiers, disk) if mode != "never" else []
    if mode != "never":
        # They are removed from both tiers for good. A later attempt, or a flush, could take them for new saves.
        if tiers.segment and tiers.rollback:
            snapshots.drop(tiers.segment, tiers.rollback.covers)
        if tiers.segment and tiers.home and (lineage := recorded(tiers.home)).steps:
            snapshots.drop(tiers.segment, lineage.supersedes)
        return moved
    if tiers.segment:
        snapshots.remove(tiers.segment)
    if leads and tiers.folder.is_dir():
        retention.start_over(tiers.folder, disk)
    return []


def _put_aside(tiers: Tiers, disk: Disk) -> list[tuple[str, str, str]]:
    """Moves the checkpoints that an order to go back covers, and those that a lost node has saved too late."""
    moved = _go_back(tiers, tiers.rollback, disk) if tiers.rollback else []
    lineage = recorded(tiers.home) if tiers.home else NONE
    for step in committed_steps(tiers.folder) if lineage.steps else ():
        name = step_name(step)
        if lineage.supersedes(store.attempt_of(tiers.folder / name), step):
            moved.append((name, str(retention.quarantine(tiers.folder, name, SUPERSEDED, disk)), SUPERSEDED))
    return moved


def _go_back(tiers: Tiers, order: Rollback, disk: Disk) -> list[tuple[str, str, str]]:
    covered = [
        step_name(step)
        for step in committed_steps(tiers.folder)
        if step >= order.before and order.covers(store.attempt_of(tiers.folder / step_name(step)), step)
    ]
    if covered and len(covered) == len(committed_steps(tiers.folder)):
        raise NoUsableCheckpoint(
            f"the run is to go back before step {order.before}, and {tiers.folder} has no checkpoint that old"
        )
    return [(name, str(retention.quarantine(tiers.folder, name, _WENT_BACK, disk)), _WENT_BACK) for name in covered]


def newest(tiers: Tiers, tried: list[str], holdings: Holdings | None = None) -> str | None:
    """The newest state that was not tried. If both tiers have its step: the checkpoint, since the program may have
    saved it later; but if that is a copy of the snapshot, the snapshot, which is read in a fraction of the time.
    `holdings`: the snapshots of all nodes; None: there is one node, or this one alone looks."""
    names = [(step_of(name) or 0, 1, name) for name in retention.held(tiers.folder)]
    if holdings is not None:
        names += [(whole.step, 0, f"{SNAPSHOT}{whole.step}") for whole in holdings.wholes]
    elif tiers.segment and (found := snapshots.find(tiers.segment)) is not None:
        names.append((found.step, 2 * snapshots.is_flushed(found), f"{SNAPSHOT}{found.step}"))
    return max(((at, tier, name) for at, tier, name in names if name not in tried), default=(0, 0, None))[2]


def _set_aside(tiers: Tiers, name: str, reason: str, damaged: bool, disk: Disk) -> str | None:
    if not damaged or name.startswith(SNAPSHOT):
        return None
    try:
        return str(retention.quarantine(tiers.folder, name, reason, disk))
    except OSError:
        return None  # on a read-only disk it stays where it is, unused


def restore(
    tiers: Tiers, mode: str, ranks: Ranks, disk: Disk, on_bad: Callable[[Bad], None] = lambda bad: None
) -> Loaded | None:
    """The newest state in `tiers` that all ranks can read whole, the same on every rank; None if there never was one.
    `on_bad` is called for each state that could not be used. Snapshots that were not used are removed: training from
    another state must not find them later. NoUsableCheckpoint if there were checkpoints and none is good, or if mode is
    "must" and there are none. CheckpointMismatch if it is a whole checkpoint whose ranks' parts do not fit together.
    With mode "never" all old checkpoints have been moved aside."""
    for name, moved, why in ranks.each_node(lambda: _prepare(tiers, mode, disk, ranks.rank == 0))[0]:
        on_bad(Bad(tiers.folder / name, why, Path(moved)))
    tried: list[str] = []
    loaded = _newest_whole(tiers, ranks, disk, on_bad, tried)
    if tiers.segment and (loaded is None or loaded.source == "disk"):
        segment = tiers.segment
        ranks.each_node(lambda: snapshots.remove(segment))
    if loaded is not None:
        return loaded
    lost = ranks.lead(lambda: retention.ever_held(tiers.folder))
    if lost:
        raise NoUsableCheckpoint(
            f"none of the checkpoints in {tiers.folder} can be used: {', '.join(lost)}; bring a good one back, or "
            "start over with resume=never, which moves them aside"
        )
    if mode == "must":
        raise NoUsableCheckpoint(f"there is no checkpoint in {tiers.folder}, and resume=must asks for one")
    if tried:
        on_bad(Bad(None, "no snapshot can be used, and there is no checkpoint: training starts again at step 0", None))
    return None


def _newest_whole(
    tiers: Tiers, ranks: Ranks, disk: Disk, on_bad: Callable[[Bad], None], tried: list[str]
) -> Loaded | None:
    holdings = held(tiers.segment, ranks) if tiers.segment and ranks.nodes.several else None
    while (name := ranks.lead(lambda: newest(tiers, tried, holdings))) is not None:
        tried.append(name)
        loaded, report = _attempt(tiers, name, ranks, holdings)
        reports = ranks.exchange(report)
        problem = _problem(reports)
        if problem is None:
            return loaded
        loaded = None
        reason, damaged = problem
        if any(report.get("misfit") for report in reports) and not (damaged or name.startswith(SNAPSHOT)):
            raise CheckpointMismatch(f"{tiers.folder / name} cannot be used, and it is not damaged: {reason}")
        moved = ranks.lead(lambda n=name, r=reason, d=damaged: _set_aside(tiers, n, r, d, disk))  # type: ignore[misc]
        path = None if name.startswith(SNAPSHOT) else tiers.folder / name
        told = reason if path else f"the {name} cannot be used: {reason}; an older state is looked for"
        on_bad(Bad(path, told, Path(moved) if moved else None))
    return None
