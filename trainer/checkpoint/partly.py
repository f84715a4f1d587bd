"""A checkpoint for evaluation, or to fine-tune from: into the parts that are given, and into nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checks.refusals import refuse, refuse_unready
from .disk.peek import Peek, read
from .group import own_rank
from .notices import Notices
from .options import One
from .sharded.places import Places
from .state import several
from .state.state import Stateful, apply, capture, present


def load(
    path: str | os.PathLike[str],
    *,
    model: One[Any] = None,
    optimizer: One[Stateful] = None,
    scheduler: One[Stateful] = None,
    scaler: One[Stateful] = None,
    ema: Any = None,
    partial: bool = False,
) -> Peek:
    """The given parts now have the state in `path`: a checkpoint (`step-00000040`), or a folder of checkpoints, of
    which the newest is read. Generators, data and a run's own files are untouched. Of what each rank has of its own
    (averages of BatchNorm) it is rank 0's. Any rank may call it, also alone.

    CheckpointMismatch if the state does not fit; then nothing was changed. With `partial`, what fits by name and shape
    is taken, and a sentence on stderr tells what was not there and what was left over. NoUsableCheckpoint if there is
    no checkpoint; Damaged if it is damaged.
    """
    given = {"model": several.with_ema(model, ema), "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    refuse(given)
    parts = present(**given)
    refuse_unready(parts.get("model"))
    loaded, seen = read(Path(path), frozenset(parts), Places(parts, capture(parts, 0, {})))
    notices = Notices(own_rank())
    for sentence in apply(parts, _taken(loaded.shared, parts), seen.where, partial):
        notices.log(sentence)
    return seen


def _taken(shared: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shared.items() if name in parts}
