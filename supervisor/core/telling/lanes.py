"""What each second of a rank was: the stretches in which it did something else than the others' steps. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from supervisor.core.telling.activity import Seen
from supervisor.core.telling.ledger import Stretch
from trainer.rundir.codes import Doing, Phase


class Lane(enum.IntEnum):
    """What a rank does. The numbers are in a file."""

    LAUNCH = 1
    RESTORE = 2
    FIRST_STEP = 3
    COMPILING = 4
    SAVING = 5
    EVALUATING = 6
    WAITING = 7
    """No step for much longer than usual, and nothing tells why: as a rule it waits for another rank."""
    ENDING = 8

    @property
    def word(self) -> str:
        return self.name.lower()


MEANING = {
    Lane.COMPILING.word: "a rank compiled",
    Lane.SAVING.word: "a rank saved by itself",
    Lane.EVALUATING.word: "a rank evaluated",
    Lane.WAITING.word: "a rank made no step, as a rule because it waited for another one",
    Lane.ENDING.word: "a rank had done its last step, or was about to end",
}
"""Those that are no rows of the ledger."""
NOTABLE = 0.5
"""Seconds. A shorter stretch among the steps is not worth a mark."""
LONG = 5.0
"""This many usual steps are a long time without one."""
_STARTS = {
    Phase.NONE: Lane.LAUNCH,
    Phase.STARTUP: Lane.LAUNCH,
    Phase.RESTORE: Lane.RESTORE,
    Phase.FIRST_STEP: Lane.FIRST_STEP,
}
_LATER = {Phase.SAVE: Lane.SAVING, Phase.EVAL: Lane.EVALUATING, Phase.TEARDOWN: Lane.ENDING}
_DOINGS = {
    Doing.STEPPING: Lane.FIRST_STEP,
    Doing.COMPILING: Lane.COMPILING,
    Doing.EVALUATING: Lane.EVALUATING,
    Doing.SAVING: Lane.SAVING,
}


def lane(seen: Seen, now: float, usual: float) -> tuple[Lane, float] | None:
    """What the rank does, and since when. None while it makes its steps. `usual`: the seconds of its steps, 0 if they
    are not known."""
    told = _DOINGS.get(seen.doing) if seen.since >= seen.at else None
    if (start := _STARTS.get(seen.phase)) is not None:
        return (told, seen.since) if told is not None else (start, seen.at)
    found = (told, seen.since) if told is not None else (_LATER.get(seen.phase, Lane.WAITING), seen.at)
    least = max(NOTABLE, LONG * usual) if found[0] is Lane.WAITING else NOTABLE
    return found if now - found[1] >= least else None


def painted(under: Sequence[Stretch], over: Sequence[Stretch]) -> list[Stretch]:
    """Both, in order, where `over` hides what is `under` it. Each is in order; what overlaps in `over` is cut."""
    found: list[Stretch] = []
    mark = float("-inf")
    for stretch in over:
        begin = max(stretch.begin, mark)
        if stretch.end > begin:
            found.append(Stretch(stretch.bucket, begin, stretch.end, stretch.attempt))
            mark = stretch.end
    above, next_ = list(found), 0
    for stretch in under:
        at = stretch.begin
        while next_ < len(above) and above[next_].end <= at:
            next_ += 1
        index = next_
        while index < len(above) and above[index].begin < stretch.end:
            if above[index].begin > at:
                found.append(Stretch(stretch.bucket, at, above[index].begin, stretch.attempt))
            at = max(at, above[index].end)
            index += 1
        if at < stretch.end:
            found.append(Stretch(stretch.bucket, at, stretch.end, stretch.attempt))
    return sorted(found, key=lambda each: each.begin)
