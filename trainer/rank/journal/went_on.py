"""Computes the step of the run from which a process resumes. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

NEAR = 2
"""The allowed difference between the step of a save and of its state: a thread that writes a copy is late."""


@dataclass(frozen=True, slots=True)
class Known:
    """The knowledge of a rank at its first step."""

    loaded: Collection[int] = ()
    """The true steps of the saves that it has loaded, -1 for an unknown step."""
    counted: int | None = None
    """Steps in the restored state of its optimizer. None if that does not count."""
    others: Collection[int] = ()
    """The steps from which other ranks resumed. Negative if not known, or not yet."""
    strange: bool = False
    """Whether this or another rank has read a file that was written since the run began, by no known save."""
    first: bool = True
    """Whether this is the run's first attempt, which has nothing to resume from."""


def went_on_from(known: Known) -> int | None:
    """The step, or None if nothing tells it.

    A loaded save tells it: of several the newest (the others are a best model, an average), or the one that agrees with
    the optimizer's own count. Without a save, that count tells it, or else a save that another rank has loaded and
    passed on. A process that has loaded nothing begins anew.
    """
    loaded = [step for step in known.loaded if step >= 0]
    if loaded:
        own = known.counted
        if own is not None and any(abs(step - own) <= NEAR for step in loaded):
            return own
        return max(loaded)
    if known.counted:
        return known.counted
    told = max(known.others, default=-1)
    if told > 0:
        return told
    if known.first or known.counted == 0:
        return 0
    return None if known.strange or len(known.loaded) > 0 else 0
