"""The curves of a run over its steps: loss, learning rate, the time of a step.

The samples of the supervisor (supervisor/live/curve.py) are of any script. If the run has a metrics.jsonl, as the
built-in trainer writes it, or if the script has logged its loss for TensorBoard, that is taken instead: it is of each
step. Of a large file only as many lines are read as a drawing has room for, spread over the whole of it.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from supervisor.core.telling.story import Story
from supervisor.live.curve import Sample
from supervisor.pages.boards import Tag, tags
from trainer.rundir.files.untrusted_files import open_file
from trainer.rundir.layout import RunDir
from trainer.rundir.records.boards import is_training_loss

POINTS = 1200
"""The most points of a curve."""
_FEW = 400
"""The most points of a curve of another name, which the program has logged."""
_MORE = 12
"""The most such curves."""
_MANY = 400
"""The most restarts that are marked: the last ones."""
_WHOLE = 1 << 20
"""Bytes of metrics that are read line by line."""
_BLOCK = 4096
Point = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Series:
    """Points by step. `lost` are those of steps that were done again later."""

    name: str
    unit: str
    points: list[Point]
    lost: list[Point] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    """The last lost step of each attempt: the curve of the lost steps does not go on over it."""
    whole: bool = False
    """Whether the program itself has written all of it down. Else it is what the supervisor has seen."""
    own: bool = False
    """Whether the steps are the program's, which may count something else than the run's: no restart is marked."""

    def shown(self) -> dict[str, Any]:
        """For the page: one axis of steps, with null where a curve has no point."""
        kept, lost = dict(thinned(self.points)), dict(thinned(self.lost))
        steps = sorted({*kept, *lost})
        columns = [[_short(of.get(step)) for step in steps] for of in (kept, lost)]
        drawn = {
            "x": steps,
            "y": columns[0],
            "lost": columns[1] if lost else None,
            "breaks": self.breaks,
            "own": self.own,
        }
        return {"name": self.name, "unit": self.unit, **drawn}


def curves(run: RunDir, story: Story, samples: Sequence[Sample]) -> list[Series]:
    """Those of which something is known, in the order of the page."""
    placed = [sample for sample in samples if sample.placed or len(story.attempts) == 1]
    losses = [(s.attempt, s.loss_step, s.loss) for s in placed if s.loss is not None and s.loss_step is not None]
    rates = [(s.attempt, s.step, s.lr) for s in placed if s.lr is not None]
    gone = _gone(story)
    found = [
        Series("loss", "", *_split(losses, gone)),
        Series("learning rate", "", *_split(rates, gone)),
        Series("time of a step", "ms", *_split(_paces(placed), gone)),
    ]
    for name, points in zip(("loss", "learning rate"), _of_metrics(run), strict=True):
        if points:
            at = next(n for n, series in enumerate(found) if series.name == name)
            # Its writer has cut off the steps that were done again. We may have seen them.
            found[at] = replace(found[at], points=points, whole=True)
    far = max((sample.step for sample in placed), default=-1)
    found = _with_boards(found, tags(run), far)
    return [series for series in found if len(series.points) > 1]


def _with_boards(found: Sequence[Series], logged: Sequence[Tag], far: int) -> list[Series]:
    """`found`, and what the program has logged for TensorBoard. Its loss is in place of that of the samples, if it
    counts the steps of the run: `far` of them are done."""
    loss, *others = found
    more: list[Series] = []
    for tag in logged:
        if tag.tag.startswith("supervise/"):
            continue  # They are from us, and the page has them.
        alike = bool(tag.kept) and 0.9 * far <= max(tag.kept) + 1 <= 1.1 * far + 2
        kept, lost = sorted(tag.kept.items()), sorted(tag.lost.items())
        if alike and is_training_loss(tag.tag) and not loss.whole:
            loss = replace(loss, points=kept, lost=lost, breaks=tag.breaks[-_MANY:], whole=True)
        else:
            kept, lost = thinned(kept, _FEW), thinned(lost, _FEW)
            more.append(Series(tag.name, "", kept, lost, tag.breaks[-_MANY:], own=not alike))
    return [loss, *others, *sorted(more, key=lambda series: -len(series.points))[:_MORE]]


def restarts(story: Story) -> list[dict[str, Any]]:
    """For each attempt after the first that is known to have begun at a step: that step, and the steps that it did
    again."""
    found = []
    high = -1
    for before, attempt in itertools.pairwise(story.attempts):
        high = max(high, before.to_step)
        if attempt.from_step is not None:
            about = {"attempt": attempt.number, "step": attempt.from_step, "until": max(high, attempt.from_step)}
            found.append({**about, "cause": str(before.cause or "")})
    return found[-_MANY:]


def _gone(story: Story) -> Callable[[int, int], bool]:
    """Whether the step, done in that attempt, was done again in a later one."""
    began: dict[int, float] = {}
    lowest = math.inf
    for attempt in reversed(story.attempts):
        began[attempt.number] = lowest
        if attempt.from_step is not None and attempt.first_step is not None:
            lowest = min(lowest, attempt.from_step)
    return lambda attempt, step: step > began.get(attempt, math.inf)


def _split(
    told: Iterable[tuple[int, int, float]], gone: Callable[[int, int], bool]
) -> tuple[list[Point], list[Point], list[int]]:
    """The points that stay, those that are lost, and the last lost step of each attempt."""
    kept: dict[int, float] = {}
    lost: dict[int, float] = {}
    last: dict[int, int] = {}
    for attempt, step, value in told:
        if gone(attempt, step):
            lost[step] = value
            last[attempt] = max(step, last.get(attempt, step))
        else:
            kept[step] = value
    return sorted(kept.items()), sorted(lost.items()), sorted({*last.values()})[-_MANY:]


def _paces(samples: Sequence[Sample]) -> list[tuple[int, int, float]]:
    """(attempt, step, milliseconds of a step up to it)."""
    found = []
    for before, now in itertools.pairwise(samples):
        steps, seconds = now.step - before.step, now.at - before.at
        if now.attempt == before.attempt and steps > 0 and seconds > 0:
            found.append((now.attempt, now.step, 1000.0 * seconds / steps))
    return found


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most `most` of the points. Of each group of neighbours the lowest and the highest stay, so no peak is lost."""
    if len(points) <= most:
        return list(points)
    each = math.ceil(2 * len(points) / most)
    found: list[Point] = []
    for at in range(0, len(points), each):
        group = points[at : at + each]
        ends = {min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])}
        found += sorted(ends)
    return found


def _short(value: float | None) -> float | None:
    if value is None:
        return None
    short = float(f"{value:.5g}")
    # The largest floats are rounded up to infinity. JSON does not have it, and no axis would reach there.
    return short if math.isfinite(short) else None


class _Line(msgspec.Struct):
    step: int
    loss: float | None = None
    lr: float | None = None


def _of_metrics(run: RunDir) -> tuple[list[Point], list[Point]]:
    """The losses and learning rates in metrics.jsonl. Empty if there is none."""
    try:
        lines = list(_lines(run))
    except OSError:
        lines = []
    told = {line.step: line for line in lines}
    steps = sorted(told)
    losses = [(step, loss) for step in steps if (loss := told[step].loss) is not None and math.isfinite(loss)]
    rates = [(step, lr) for step in steps if (lr := told[step].lr) is not None and math.isfinite(lr)]
    return losses, rates


def _lines(run: RunDir) -> Iterable[_Line]:
    decoder = msgspec.json.Decoder(_Line)
    for line in _raw(run):
        try:
            told = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if 0 <= told.step < 1 << 53:
            yield told


def _raw(run: RunDir) -> Iterable[bytes]:
    fd = open_file(run.metrics)
    try:
        size = os.fstat(fd).st_size
        if size <= _WHOLE:
            yield from os.pread(fd, size, 0).split(b"\n")
            return
        for n in range(POINTS):
            # The first whole line after an even share of the file.
            block = os.pread(fd, _BLOCK, n * max(size - _BLOCK, 0) // (POINTS - 1))
            yield from block.split(b"\n")[1 if n else 0 :][:1]
    finally:
        os.close(fd)
