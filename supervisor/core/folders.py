"""Folders that are a checkpoint made of several files: whether their own files say that they are whole, and under which
name nobody takes one for a checkpoint. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_UNFINISHED = "checkpoint-is-incomplete.txt"
"""transformers leaves it in a folder until that is whole, when it saves because it was asked to stop."""
_NUMBERED = re.compile(r"(checkpoint|ckpt|epoch|global_step|iter|iteration|step)[-_]?\d+", re.IGNORECASE)
_BY_ACCELERATE = re.compile(r"checkpoint_\d+")
_CLOCK = 0.02
"""Seconds by which a file may seem to be written before it was: the kernel stamps files by its tick."""


def is_whole(files: Mapping[str, float], ranks: int, since: float) -> bool:
    """Whether the files say so, which were written at these times (by the wall clock), of a save that began at `since`
    and was made by `ranks` ranks. Where they say nothing, it is not."""
    fresh = {name for name, at in files.items() if at >= since - _CLOCK}
    if _UNFINISHED in files:
        return False
    if ".metadata" in fresh:
        return True
    states = {"rng_state.pth"} if ranks <= 1 else {f"rng_state_{rank}.pth" for rank in range(ranks)}
    return "trainer_state.json" in fresh and states <= fresh


def is_numbered(name: str) -> bool:
    """Whether a folder of that name is one checkpoint of several: `step_10`, `checkpoint-500`, `epoch3`."""
    return _NUMBERED.fullmatch(name) is not None


def set_aside(path: str, attempt: int, prefix: str) -> str:
    """Where the folder at `path` goes, which `attempt` left half made: a name beside it that no framework looks for."""
    parent, _, name = path.rpartition("/")
    if _BY_ACCELERATE.fullmatch(name) and parent.endswith("/checkpoints"):
        # accelerate takes all that is in there for checkpoints, and sorts it by the numbers in the names.
        parent = parent.rpartition("/")[0]
    return f"{parent}/{prefix}{name}-a{attempt}"
