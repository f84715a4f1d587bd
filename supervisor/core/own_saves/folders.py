"""Folders that are a checkpoint of several files: a check whether they are whole, and a name that nobody takes for a
checkpoint. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_UNFINISHED = "checkpoint-is-incomplete.txt"
"""When transformers saves because of a request to stop, this file is in the folder until the folder is whole."""
_NUMBERED = re.compile(r"(checkpoint|ckpt|epoch|global_step|iter|iteration|step)[-_]?\d+", re.IGNORECASE)
_TEMPORARY = re.compile(r"te?mp|temporary|partial|incomplete", re.IGNORECASE)
_BY_ACCELERATE = re.compile(r"checkpoint_\d+")
_CLOCK = 0.02
"""Seconds by which the time of a file may be too early: the kernel stamps files by its tick."""


def is_whole(files: Mapping[str, float], ranks: int, since: float) -> bool:
    """Whether the files show that a save is whole. `files` gives the time of each file (wall clock); `.` is the folder
    itself. `ranks` ranks made the save, from `since` on. If the files show nothing, it is not whole."""
    fresh = {name for name, at in files.items() if at >= since - _CLOCK}
    if _UNFINISHED in files:
        return False
    if files and not fresh:
        return True  # untouched: the attempt ended before anything was written
    if ".metadata" in fresh:
        return True
    states = {"rng_state.pth"} if ranks <= 1 else {f"rng_state_{rank}.pth" for rank in range(ranks)}
    return "trainer_state.json" in fresh and states <= fresh


def is_numbered(name: str) -> bool:
    """Whether a folder with that name is one of several checkpoints: `step_10`, `checkpoint-500`, `epoch3`."""
    return _NUMBERED.fullmatch(name) is not None


def will_be_numbered(name: str) -> bool:
    """Whether a folder with that name is numbered, or may be made under this name and renamed: `step_10.tmp`."""
    return is_numbered(_TEMPORARY.sub("", name).strip("._-"))


def set_aside(path: str, attempt: int, prefix: str) -> str:
    """The new path for the folder `path`, which `attempt` left half made. It is beside the old path, under a name that
    no framework looks for."""
    parent, _, name = path.rpartition("/")
    if _BY_ACCELERATE.fullmatch(name) and parent.endswith("/checkpoints"):
        # accelerate takes everything in that folder for checkpoints, and sorts it by the numbers in the names.
        parent = parent.rpartition("/")[0]
    return f"{parent}/{prefix}{name}-a{attempt}"
