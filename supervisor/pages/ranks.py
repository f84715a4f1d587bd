"""What each second of each rank was: its attempt's stretches, and over them what the rank itself did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from supervisor.core.size import counted, human_seconds
from supervisor.core.telling.lanes import Lane, painted
from supervisor.core.telling.ledger import Stretch, stretches
from supervisor.core.telling.story import Story
from supervisor.live.lanes import Part
from supervisor.pages.timeline import WIDE, Drawing, Mark, Row, Shape, columns, ticks

_RANKS = 64
_SHAPES = 4000
"""Stretches in the whole drawing. Of more, each column of a rank is what fills most of it."""
_LEAST, _MOST = 60, 1000
_MARKS = 200
_HIGH = 15


def silences(story: Story, events: Iterable[Mapping[str, Any]]) -> list[Part]:
    """The times in which a rank that trained was silent, as events tell them. Times are on the run's time line."""
    found, begun = list[Part](), dict[tuple[int, int], float]()
    last = story.last
    for event in events:
        number, rank, at = event.get("attempt"), event.get("rank"), event.get("mono")
        if event.get("msg") != "pause" or not isinstance(number, int) or not isinstance(rank, int):
            continue
        if isinstance(at, float | int):
            begin = begun.pop((number, rank), None)
            if begin is not None:
                found.append(Part(number, rank, Lane.WAITING, begin, at))
            if not event.get("over"):
                begun[number, rank] = at
    return found + [Part(number, rank, Lane.WAITING, at, max(last, at)) for (number, rank), at in begun.items()]


def of_ranks(
    story: Story,
    seen: Sequence[Part],
    silent: Sequence[Part],
    ends: Mapping[tuple[int, int], float],
    nproc: int,
    now: float,
) -> Drawing | None:
    """A row for each rank. `seen`: by the clock of each attempt's files. `ends`: by (attempt, rank) the time when the
    rank ended by itself."""
    whole = stretches(story, now)
    if story.started is None or not whole or nproc > _RANKS:
        return None
    begin, length = story.started, max(whole[-1].end - story.started, 1e-9)
    offsets = {attempt.number: attempt.offset for attempt in story.attempts}
    over: dict[int, list[Stretch]] = defaultdict(list)
    for part in silent:
        over[part.rank].append(Stretch(part.kind.word, part.begin, part.end, part.attempt))
    for part in seen:
        if part.attempt in offsets:
            shift = offsets[part.attempt]
            over[part.rank].append(Stretch(part.kind.word, part.begin + shift, part.end + shift, part.attempt))
    rows = [
        _row(rank, _of_rank(rank, story, whole, over[rank], ends), begin, length, max(_LEAST, _SHAPES // nproc))
        for rank in range(nproc)
    ]
    for attempt in story.attempts:
        row = rows[attempt.rank] if attempt.rank is not None and 0 <= attempt.rank < nproc else None
        if row is not None and attempt.failed is not None and len(row.marks) < _MARKS:
            x = round(min(max((attempt.failed - begin) / length, 0.0), 1.0) * WIDE, 2)
            row.marks.append(Mark(x, "failed", f"{attempt.cause}: {attempt.reason}"))
    return Drawing(f"What each second of {counted(nproc, 'rank')} was spent on", rows, ticks(length))


def _of_rank(
    rank: int,
    story: Story,
    whole: Sequence[Stretch],
    over: Iterable[Stretch],
    ends: Mapping[tuple[int, int], float],
) -> list[Stretch]:
    """The stretches of the rank while it lived."""
    lives: dict[int, tuple[float, float]] = {}
    for attempt in story.attempts:
        until = attempt.gone if attempt.gone is not None else whole[-1].end
        # What a rank did after the failure was seen is the attempt's end, not its own.
        seen = min(attempt.verdict if attempt.verdict is not None else until, until)
        end = min(ends.get((attempt.number, rank), until), until)
        lives[attempt.number] = (end, min(end, seen))
    under = [_until(part, lives[part.attempt][0]) for part in whole if part.attempt in lives]
    above = [_until(part, lives[part.attempt][1]) for part in over if part.attempt in lives]
    own = sorted((part for part in above if part.end > part.begin), key=lambda part: part.begin)
    return painted([part for part in under if part.end > part.begin], own)


def _until(part: Stretch, end: float) -> Stretch:
    return replace(part, end=min(part.end, end))


def _row(rank: int, parts: Sequence[Stretch], begin: float, length: float, most: int) -> Row:
    seconds: dict[str, float] = defaultdict(float)
    for part in parts:
        seconds[part.bucket] += part.seconds
    if len(parts) > most:
        parts = columns(parts, begin, length, min(most, _MOST))
    paths: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        x = round((part.begin - begin) / length * WIDE, 1)
        wide = max(0.4, round((part.end - begin) / length * WIDE - x, 1))
        paths[part.bucket].append(f"M{x:g} 0h{wide:g}v{_HIGH}h{-wide:g}z")
    shapes = [
        Shape(kind, "".join(found), f"rank {rank}: {kind}, {human_seconds(seconds[kind])} in all")
        for kind, found in paths.items()
    ]
    return Row(f"rank {rank}", shapes=shapes)
