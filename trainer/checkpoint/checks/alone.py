"""Steps of which a checkpoint is there already, so that what is saved at them now would be in none.

Two Checkpointers that take turns in one folder save at the same steps. One that is made after another (a program that
goes on in the same process) takes its place; only one that steps again after that is refused.

A program that does not call restore() has not gone on from what is there.
"""

from __future__ import annotations

import weakref
from pathlib import Path

from ...rundir.layout import committed_steps
from ..errors import StateError

_stepped: dict[tuple[Path, int], list[weakref.ref[object]]] = {}
"""By folder and rank, those that have made steps there, in the order of their first ones."""


def claim(one: object, folder: Path, rank: int, went_on: bool) -> None:
    """`one` makes the steps of `rank` in `folder` from now on. StateError if another one has taken its place there, or
    if checkpoints are there and it has not gone on from them (`went_on`)."""
    known = _stepped.setdefault((folder, rank), [])
    if known and known[-1]() is one:
        return
    if any(other() is one for other in known):
        raise StateError(
            f"two Checkpointers take turns in {folder}: what the second one saves would be in no checkpoint; give one "
            "Checkpointer all of it, as model={...} and optimizer={...}, or give the other one a directory= of its own"
        )
    if not went_on and (there := committed_steps(folder)):
        raise StateError(
            f"{folder} has checkpoints up to step {there[-1]}, and training begins without restore(): a step that is "
            "there counts as saved; call restore(), with resume='never' to put them aside, or give another directory="
        )
    known[:] = [other for other in known if other() is not None]
    known.append(weakref.ref(one))
