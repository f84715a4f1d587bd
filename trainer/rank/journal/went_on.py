"""From which step of the run a process goes on: what it knows, weighed. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

NEAR = 2
"""Steps by which the step of a save may differ from that of the state in it: a thread that writes a copy is late."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a rank knows at its first step."""

    loaded: Collection[int] = ()
    """The true steps of the saves that it has loaded; -1 of one whose step is not known."""
    counted: int | None = None
    """Steps in its optimizer's restored state; None if that does not count."""
    others: Collection[int] = ()
    """What other ranks went on from, negative where that is not known or not yet."""
    strange: bool = False
    """Whether it, or another rank, has read what was written since the run began, and by no save that is known."""
    first: bool = True
    """Whether this is the run's first attempt, which has nothing to go on from."""


def went_on_from(known: Known) -> int | None:
    """The step, or None if nothing tells it.

    A save that was loaded tells it; of several the newest (the others are a best model, an average), or the one that
    the optimizer's own count speaks for. Else that count; else what another rank has loaded and sent round. What has
    loaded nothing begins anew.
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
