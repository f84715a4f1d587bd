"""What the making of a standby takes from the training beside it: the steps meanwhile, compared with as many seconds
of steps afterwards. Pure.

    first step ── settled ──┤ a standby is made: these steps ├─┤ it waits: these steps are the usual ones ├──

It counts what begins together with a standby too: the flush of the snapshot from which a restart went on. A median on
both sides: a step that waited for a save, or for a disk, tells nothing of the standby.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEAST = 5
"""Steps on both sides. Of fewer nothing is said."""
SHORTEST, LONGEST = 1.0, 10.0
"""Seconds of steps afterwards: as long as the making took, between these."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Some steps in a row between two looks."""

    seconds: float
    """Of one of them, on average."""
    steps: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What the making of one standby has cost."""

    seconds: float
    """The steps meanwhile took so much longer, all together. By chance it may be below 0."""
    share: float
    """By so much of a usual step the median step was longer."""
    made_s: float
    """The seconds of training beside which it was made."""


def cost(beside: Sequence[Pace], after: Sequence[Pace]) -> Cost | None:
    """The cost of a standby that was made `beside` these steps, by the usual ones `after`. None if they are too few."""
    steps = sum(pace.steps for pace in beside)
    if steps < LEAST or sum(pace.steps for pace in after) < LEAST:
        return None
    slow, usual = _median(beside), _median(after)
    if usual <= 0.0:
        return None
    return Cost((slow - usual) * steps, slow / usual - 1.0, _seconds(beside))


def median(values: Iterable[float]) -> float | None:
    """The lower median; None of nothing."""
    found = sorted(values)
    return found[(len(found) - 1) // 2] if found else None


def _median(paces: Sequence[Pace]) -> float:
    """The seconds of the middle one of all steps."""
    left = (sum(pace.steps for pace in paces) + 1) // 2
    for pace in sorted(paces, key=lambda pace: pace.seconds):
        left -= pace.steps
        if left <= 0:
            return pace.seconds
    return 0.0


def _seconds(paces: Iterable[Pace]) -> float:
    return sum(pace.seconds * pace.steps for pace in paces)


class Meter:
    """Is shown the steps of each attempt in turn, and whether a standby is being made."""

    def __init__(self) -> None:
        self._begin(-1)

    def _begin(self, attempt: int) -> None:
        self._attempt = attempt
        self._last: tuple[int, float] | None = None
        self._made = False
        """Whether one was being made at a look since the last step."""
        self._beside: list[Pace] = []
        self._after: list[Pace] = []

    def see(self, attempt: int, step: int, at: float, making: bool) -> Cost | None:
        """The attempt finished `step` at the time `at`. Returns the cost of a standby that was made before, once enough
        steps were seen after it. None else, and for a making that too few steps tell of."""
        if attempt != self._attempt:
            self._begin(attempt)
        self._made |= making
        last, made = self._last, self._made
        if last is not None and (step <= last[0] or at <= last[1]):
            return None
        self._last, self._made = (step, at), making
        if last is None:
            return None
        pace = Pace((at - last[1]) / (step - last[0]), step - last[0])
        if made:
            # One that waited for a moment only, and was made anew, is the same making.
            self._beside.append(pace)
            self._after.clear()
            return None
        if not self._beside:
            return None
        self._after.append(pace)
        enough = min(max(_seconds(self._beside), SHORTEST), LONGEST)
        if _seconds(self._after) < enough or sum(pace.steps for pace in self._after) < LEAST:
            return None
        found = cost(self._beside, self._after)
        self._beside, self._after = [], []
        return found
