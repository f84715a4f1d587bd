"""The step from which a tracker's old points are hidden, because they are written again. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from ..progress import Position

Point = tuple[str, int]
"""(series, step)."""


def kept(points: Iterable[Point | int]) -> list[Point]:
    """The points that a reader still shows. An int hides all earlier points that have that step or a later one."""
    found: list[Point] = []
    for point in points:
        if isinstance(point, int):
            found = [each for each in found if each[1] < point]
        else:
            found.append(point)
    return found


def cut(old: Sequence[Point], series: str, step: int, at: Position) -> int | None:
    """The step from which all `old` points are hidden. They are hidden before the point (`series`, `step`) is written,
    by a process that is `at` this position. None: nothing may be hidden here, or not yet.

    A program may count steps, batches, epochs or tokens. So its own next number is the measure. The true step tells
    more only if both count alike. A hiding event does not distinguish series. If the series that would lose points do
    not count together (the loss by steps, an evaluation by tokens), nothing is hidden.
    """
    alike = at.began is not None and at.began <= step and abs(step - at.done) <= 1
    if alike and at.began is not None:
        # Points between the two were logged by chance or by time. They are not written again.
        start = min(step, at.began + 1)
    elif at.here and step > 0:
        start = step
    else:
        # A text at step 0 tells nothing about the program's position.
        return None
    losing = {name for name, there in old if there >= start}
    if not losing or (not alike and series not in losing):
        return None
    steps = [there for name, there in old if name in losing and there > 0]
    return start if all(before <= after for before, after in pairwise(steps)) else None
