"""The guard of a run's loss: it stops a loss that is not finite before the step is saved, and it keeps the skipped
data.

    data step = the index of a step's data: the step, moved past every skipped window before it

    skipped [20, 24):    step   18 19 20 21 …          the run has all its steps, each once in metrics.jsonl;
                         data   18 19 24 25 …          what moves is the data. Windows are of data steps, not of steps.

The guard is part of every checkpoint and snapshot, so every resume, with any number of ranks, skips the same data.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from ..errors import LossSpike, NotFinite
from ..rundir.records.rollback import Rollback

Window = tuple[int, int]

BASE = 50
"""The number of losses that a spike is compared with."""
LASTING = 3
"""A jump counts as a spike when it has lasted for this many steps."""


def data_step(step: int, skip: tuple[Window, ...]) -> int:
    """The index of the data for `step`. `skip` are the skipped windows, in order and not touching."""
    for start, end in skip:
        if step < start:
            break
        step += end - start
    return step


def joined(skip: tuple[Window, ...], window: Window) -> tuple[Window, ...]:
    """`skip` with `window` added, in order; windows that touch are joined."""
    merged: list[Window] = []
    for start, end in sorted((*skip, window)):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(merged)


def is_spike(losses: list[float], times: float) -> bool:
    """Whether each of the last LASTING losses is too high. The BASE losses before them give a median and a median
    deviation; too high is more than `times` the deviation above the median. False while there are fewer losses, and if
    most of the BASE are zeros: nothing says how much is much."""
    if len(losses) < BASE + LASTING:
        return False
    base, suspects = losses[-BASE - LASTING : -LASTING], losses[-LASTING:]
    middle = median(base)
    # Losses that hardly move have almost no deviation; a change of a thousandth is not a spike.
    deviation = max(median(abs(loss - middle) for loss in base), abs(middle) / 1000)
    return deviation > 0 and all(loss > middle + times * deviation for loss in suspects)


class Guard:
    """The guard of one run, on one rank. `spike` is the number of median deviations that is too many; None: no such
    rule."""

    def __init__(self, spike: float | None = None) -> None:
        self.skip: tuple[Window, ...] = ()
        """The windows of data that are skipped, half open."""
        self._spike = spike
        self._losses: list[float] = []
        self._steps: list[int] = []
        """The steps of the newest losses. A checkpoint of an older version has none."""

    def data_step(self, step: int) -> int:
        """The index of the data for `step`."""
        return data_step(step, self.skip)

    def take(self, order: Rollback, step: int, attempt: int | None) -> Window | None:
        """The window that `order` adds; it is skipped from now on. The run goes on from `step`, which `attempt`
        saved."""
        window = self.data_step(step), order.skip_to
        if not order.is_old(attempt) or window[0] >= window[1]:
            return None
        self.skip = joined(self.skip, window)
        return window

    def spiked(self) -> bool:
        """Whether the losses noted so far end in a spike."""
        return self._spike is not None and is_spike(self._losses, self._spike)

    def judge(self, step: int, loss: float | None, spiked: bool = False) -> None:
        """Notes `loss`, that of step number `step`, if there is one. NotFinite if it is not finite, LossSpike if
        `spiked`: rank 0 has seen a spike, or any rank has."""
        at = f"step {step} (data step {self.data_step(step - 1)})"
        if loss is not None and not math.isfinite(loss):
            raise NotFinite(f"the loss of {at} is {loss}", step)
        if spiked:
            # The spike was seen in the losses before this one. Not every step need have a loss.
            first = self._steps[-LASTING] if len(self._steps) >= LASTING else step - LASTING
            raise LossSpike(f"the losses before {at} are a spike", first)
        if self._spike is not None and loss is not None:
            self._losses = [*self._losses[1 - BASE - LASTING :], loss]
            self._steps = [*self._steps[1 - LASTING :], step]

    def state_dict(self) -> dict[str, Any]:
        """Empty for a run that never went back and has no rule for spikes."""
        state: dict[str, Any] = {}
        if self.skip:
            state["skip"] = [list(window) for window in self.skip]
        if self._losses:
            state["losses"], state["steps"] = list(self._losses), list(self._steps)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skip = tuple((int(start), int(end)) for start, end in state.get("skip", ()))
        judges = self._spike is not None
        self._losses = [float(loss) for loss in state.get("losses", ())] if judges else []
        self._steps = [int(step) for step in state.get("steps", ())] if judges else []
