"""One Checkpointer a folder. Two that take turns save into the same steps: the second one finds its step there already,
and what it has is in no checkpoint.

A Checkpointer that is made after another one (a program that goes on in the same process) takes its place. Only one
that steps again after that is refused.
"""

from __future__ import annotations

import weakref
from pathlib import Path

from ..errors import StateError

_stepped: dict[tuple[Path, int], list[weakref.ref[object]]] = {}
"""By folder and rank, those that have made steps there, in the order of their first ones."""


def claim(one: object, folder: Path, rank: int) -> None:
    """`one` makes the steps of `rank` in `folder` from now on. StateError if another one has taken its place there."""
    known = _stepped.setdefault((folder, rank), [])
    if known and known[-1]() is one:
        return
    if any(other() is one for other in known):
        raise StateError(
            f"two Checkpointers take turns in {folder}: what the second one saves would be in no checkpoint; give one "
            "Checkpointer all of it, as model={...} and optimizer={...}, or give the other one a directory= of its own"
        )
    known[:] = [other for other in known if other() is not None]
    known.append(weakref.ref(one))
