"""A loaded state is put back into the parts of this rank, its generators last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..rank.progress import progress
from .disk.assembly import Loaded
from .errors import CheckpointMismatch
from .group import Ranks
from .state import rng
from .state.marks import PerRank
from .state.per_rank import OWN, OnResize, Resize, own_names
from .state.state import Stateful, apply, check
from .state.values.records import lost


def known(loaded: Loaded | None, directory: Path) -> Loaded | None:
    """`loaded`. CheckpointMismatch if it holds a dataclass that cannot be made here."""
    if loaded is not None:
        for path, one in lost([loaded.shared, loaded.own, loaded.everyone]):
            where, at = loaded.where(directory), path.partition("/")[2]
            raise CheckpointMismatch(f"{where} holds a dataclass {one.name} ({at}), and {one.why}")
    return loaded


def put_back(
    loaded: Loaded,
    parts: Mapping[str, Stateful],
    marked: Mapping[str, PerRank],
    ranks: Ranks,
    on_resize: OnResize,
    where: str,
    in_part: bool = False,
) -> tuple[dict[str, Any], list[str]]:
    """Every part goes on from `loaded`. Returns the stored extra, and what is to be told. CheckpointMismatch if the
    state does not fit; then nothing was changed. `in_part`: what fits goes on from it, and the rest is told."""
    resize = Resize(ranks.rank, ranks.world_size, loaded.manifest.world_size, on_resize, where)
    settled = resize.settle(loaded, parts, marked)
    if not in_part and set(own_names(parts)) - set(OWN):
        _checked_by_all(parts, settled.state, where, ranks)
    taking = {name: part for name, part in parts.items() if name not in settled.afresh}
    sentences = [*settled.notices, *apply(taking, settled.state, where, in_part)]
    return settled.state.get("extra") or {}, sentences


def _checked_by_all(parts: Mapping[str, Stateful], state: Mapping[str, Any], where: str, ranks: Ranks) -> None:
    """CheckpointMismatch on every rank if the state of any does not fit: each has another model."""
    problem = None
    try:
        check(parts, state, where)
    except CheckpointMismatch as error:
        problem = str(error)
    for rank, text in enumerate(ranks.exchange(problem)):
        if text is not None:
            raise CheckpointMismatch(f"rank {rank}: {text}")


def draw_on(loaded: Loaded, rank: int, seed: int, where: str) -> str | None:
    """The generators go on as `rank` had left them. If it did not exist they are seeded, and a note says so. Returns a
    sentence if one of them cannot go on."""
    if loaded.own is not None and "rng" in loaded.own:
        lost = rng.apply(loaded.own["rng"])
        return None if lost is None else f"{where}: {lost}"
    rng.seed(seed, rank, loaded.manifest.step)
    world = loaded.manifest.world_size
    why = f"is of {world} ranks" if rank >= world else "has no generators (it was imported)"
    text = f"{where} {why}: rank {rank} has freshly seeded generators"
    progress().note("warning", text=text)
    return None
