"""Where the seconds of a run went, as rectangles for a drawing 1000 wide: what each second was, attempt by attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from supervisor.core.size import human_seconds
from supervisor.core.telling.ledger import Stretch, stretches
from supervisor.core.telling.story import Story

WIDE = 1000.0
_COLUMNS = 1000
"""More stretches than this are drawn as the one that fills most of each column."""
_ROWS = 40
"""Attempts with a row of their own: the last ones."""
_MARKS, _APART = 200, 2.0
"""The most marks of a row, and the least room between two of a kind."""
_SAVES = ("checkpoint_committed", "checkpoint_failed", "checkpoint_quarantined")
MARKED = ("verdict", "fault_injected", "pause", "straggler", *_SAVES)
_ROW = 22.0


@dataclass(frozen=True, slots=True)
class Box:
    """A stretch of time. `kind` is its class in the style sheet."""

    x: float
    width: float
    kind: str
    title: str


@dataclass(frozen=True, slots=True)
class Shape:
    """All stretches of one kind in a row, as a path of SVG that begins at the row's top."""

    kind: str
    path: str
    title: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: a failure, a fault that was injected, a checkpoint, a rank that is silent."""

    x: float
    kind: str
    title: str


@dataclass(slots=True)
class Row:
    """One line of the drawing."""

    label: str
    boxes: list[Box] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    """In place of boxes, where there may be many."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Rows over one axis of time."""

    title: str
    rows: list[Row]
    ticks: list[tuple[float, str]]
    left_out: int = 0

    @property
    def height(self) -> float:
        return _ROW * len(self.rows) + 44

    @property
    def pitch(self) -> float:
        return _ROW


def drawing(story: Story, events: Sequence[Mapping[str, Any]], now: float) -> Drawing | None:
    """The whole run in the first row, then its attempts. `events` are on the run's time line. None if it has not
    begun."""
    parts = stretches(story, now)
    if story.started is None or not parts:
        return None
    begin, length = story.started, max(parts[-1].end - story.started, 1e-9)

    def x(at: float) -> float:
        return round(min(max((at - begin) / length, 0.0), 1.0) * WIDE, 2)

    rows = [Row("run", _boxes(parts, begin, length, x))]
    shown = story.attempts[-_ROWS:]
    for attempt in shown if len(story.attempts) > 1 or events else []:
        own = [part for part in parts if part.attempt == attempt.number]
        rows.append(Row(f"{attempt.number}  {attempt.cause or 'running'}", _boxes(own, begin, length, x)))
    places = {attempt.number: row for attempt, row in zip(shown, rows[1:], strict=False)}
    last: dict[tuple[int, str], float] = {}
    for number, mark in _marks(events, x):
        near = mark.x - last.get((number, mark.kind), -WIDE) < _APART
        if (row := places.get(number)) is not None and not near and len(row.marks) < _MARKS:
            row.marks.append(mark)
            last[number, mark.kind] = mark.x
    count = f"{len(story.attempts)} attempt{'s' if len(story.attempts) != 1 else ''}"
    title = f"What each second was spent on: {count} in {human_seconds(length)}"
    return Drawing(title, rows, ticks(length), len(story.attempts) - len(shown))


def _boxes(parts: Sequence[Stretch], begin: float, length: float, x: Any) -> list[Box]:
    if len(parts) > _COLUMNS:
        parts = columns(parts, begin, length)
    found = []
    for part in parts:
        of = "" if part.attempt is None else f"attempt {part.attempt}, "
        title = f"{of}{part.bucket}: {part.seconds:.2f} s"
        found.append(Box(x(part.begin), _width(x(part.end) - x(part.begin)), part.bucket, title))
    return found


def _width(width: float) -> float:
    return round(max(width, 0.4), 2)


def columns(parts: Sequence[Stretch], begin: float, length: float, count: int = _COLUMNS) -> list[Stretch]:
    """Of each column of the drawing the bucket that fills most of it."""
    each = length / count
    filled: list[dict[str, float]] = [{} for _ in range(count)]
    for part in parts:
        first, last = int((part.begin - begin) / each), int((part.end - begin) / each)
        for column in range(max(first, 0), min(last, count - 1) + 1):
            left, right = begin + column * each, begin + (column + 1) * each
            share = min(part.end, right) - max(part.begin, left)
            filled[column][part.bucket] = filled[column].get(part.bucket, 0.0) + max(share, 0.0)
    found: list[Stretch] = []
    for column, shares in enumerate(filled):
        bucket = max(shares, key=lambda name: shares[name], default="")
        left, right = begin + column * each, begin + (column + 1) * each
        if not bucket:
            continue
        if found and found[-1].bucket == bucket and found[-1].end >= left - 0.5 * each:
            found[-1] = Stretch(bucket, found[-1].begin, right)
        else:
            found.append(Stretch(bucket, left, right))
    return found


def _marks(events: Iterable[Mapping[str, Any]], x: Any) -> Iterable[tuple[int, Mark]]:
    """(attempt, mark) of each moment that is worth one."""
    for event in events:
        number, at, rank = event.get("attempt"), event.get("mono"), event.get("rank")
        if not isinstance(number, int) or not isinstance(at, float | int):
            continue
        who = f"rank {rank}: " if isinstance(rank, int) else ""
        match event.get("msg"):
            case "verdict" if event.get("cause") not in ("finished", "stopped_by_user"):
                failed = event.get("failed_mono")
                at = failed if isinstance(failed, float | int) else at
                yield number, Mark(x(at), "failed", str(event.get("reason", "")))
            case "fault_injected":
                fired = event.get("fired_mono")
                at = fired if isinstance(fired, float | int) else at
                yield number, Mark(x(at), "fault", f"fault: {event.get('spec')}")
            case "checkpoint_committed":
                yield number, Mark(x(at), "saved", f"checkpoint of step {event.get('step')}")
            case "pause" if not event.get("over"):
                yield number, Mark(x(at), "silent", f"{who}{event.get('text', '')}")
            case "straggler" if event.get("slow"):
                yield number, Mark(x(at), "silent", f"{who}{event.get('text', '')}")
            case "checkpoint_failed" | "checkpoint_quarantined":
                yield number, Mark(x(at), "failed", f"{who}{event.get('msg')} {event.get('error', '')}")


def ticks(length: float) -> list[tuple[float, str]]:
    """(x, text) of round times from 0 on, at most ten."""
    units = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)
    unit: float = next((unit for unit in units if length / unit <= 9), 0.0)
    if not unit:
        unit = 86400.0 * (int(length / 9 / 86400) + 1)
    return [(round(unit * n / length * WIDE, 2), _clock(unit * n, unit)) for n in range(int(length / unit) + 1)]


def _clock(seconds: float, unit: float) -> str:
    if unit < 60:
        return f"{seconds:g} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    days, hours = divmod(hours, 24) if unit >= 14400 else (0, hours)
    return f"{days} d {hours} h" if days else (f"{hours}:{minutes:02d} h" if hours else f"{minutes} min")
