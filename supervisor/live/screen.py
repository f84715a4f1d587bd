"""The full screen of `supervise watch`, as rows of text for any size of terminal. Pure but for the clock."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from supervisor.core.size import human_seconds
from supervisor.core.telling import figures
from supervisor.core.telling.ledger import Ledger, Stretch
from supervisor.core.words import RunState
from supervisor.live.line import cut, line
from supervisor.live.view import Now
from trainer.rundir.codes import Doing, Phase
from trainer.rundir.records.beats import Beat

_BARS = "▁▂▃▄▅▆▇█"
_HEADS = ("rank", "step", "ms/step", "own ms", "last beat", "phase", "")
_WIDTHS = (5, 10, 9, 9, 10, 22)
_WIDE = 60
_EVENTS, _FEWEST = 5, 3
_DOING = {doing: doing.name.lower() for doing in Doing}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the screen. `style` is rich's."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that the screen shows."""

    title: str
    now: Now
    at: float
    """The time of the look, on the clock of the beats."""
    clock: str
    losses: Sequence[float]
    goodputs: Sequence[float]
    book: Ledger
    events: Sequence[Row]
    """The newest last."""
    logs: Sequence[str]


def screen(picture: Picture, columns: int, rows: int) -> list[Row]:
    """At most `rows` rows of at most `columns` columns. What is less important has less room, and then none."""
    width = columns - 1
    now = picture.now
    above = [_title(picture, width), Row(line(now, width), _STYLES.get(now.state, "bold"))]
    ranks = _ranks(picture, width, max(_FEWEST, rows // 4))
    curves = _curves(picture, width)
    left = rows - len(above) - len(ranks) - len(curves) - 2 - bool(ranks)
    most = min(max(_EVENTS, rows // 5), left // 2)
    events = list(picture.events)[-most:] if most > 0 else []
    left -= len(events)
    logs = [Row(text) for text in list(picture.logs)[-left:]] if left > 0 else []
    below = [_headed("events", events, width), _headed("log", logs, width)]
    parts = [above, _headed("ranks", ranks, width), curves, *below]
    found = [row for part in parts for row in part][:rows]
    return [Row(_fitted(row.text, width), row.style) for row in found]


_STYLES: Mapping[str, str] = {
    RunState.RUNNING: "bold green",
    RunState.FINISHED: "bold green",
    RunState.FAILED: "bold red",
    RunState.STUCK: "bold red",
    RunState.LOST: "bold red",
    RunState.RECOVERING: "bold yellow",
    RunState.BACKOFF: "bold yellow",
}


def _title(picture: Picture, width: int) -> Row:
    left = cut(picture.title, max(1, width - cell_len(picture.clock) - 1))
    return Row(f"{left}{' ' * (width - cell_len(left) - cell_len(picture.clock))}{picture.clock}", "reverse")


def _headed(head: str, rows: Sequence[Row], width: int) -> list[Row]:
    return [Row(f"── {head} {'─' * max(0, width - len(head) - 4)}", "dim"), *rows] if rows else []


def _ranks(picture: Picture, width: int, most: int) -> list[Row]:
    """One row for each rank. If they are too many: those that are slow or silent, and the number of the rest."""
    now = picture.now
    if not now.beats:
        return []
    slow = now.story.attempt.stragglers if now.story.attempt is not None else {}
    beats = list(now.beats)
    if len(beats) > most - 1:
        beats.sort(key=lambda beat: (beat.rank not in slow, beat.at))
        beats = sorted(beats[: most - 2], key=lambda beat: beat.rank)
    rows = [Row(_columns(_HEADS, width), "dim")]
    for beat in beats:
        rows.append(Row(_columns(_cells(picture, beat, slow), width), "yellow" if beat.rank in slow else ""))
    if len(beats) < len(now.beats):
        rows.append(Row(f"and {len(now.beats) - len(beats)} more, as fast as the others", "dim"))
    return rows


def _cells(picture: Picture, beat: Beat, slow: Mapping[int, str]) -> tuple[str, ...]:
    speed, own = picture.now.speeds.get(beat.rank), picture.now.own.get(beat.rank)
    over = picture.now.story.over
    doing = _DOING[beat.doing] if beat.doing is not Doing.NONE and beat.since >= beat.at else ""
    return (
        str(beat.rank),
        str(beat.step) if beat.placed and beat.phase >= Phase.TRAIN else "-",
        f"{speed * 1e3:.4g}" if speed else "-",
        f"{own * 1e3:.4g}" if own else "-",
        "-" if over else human_seconds(max(0.0, picture.at - beat.at)),
        beat.phase.word + (f", {doing}" if doing else ""),
        "slow" if beat.rank in slow else "",
    )


def _columns(cells: Sequence[str], width: int) -> str:
    """The cells in their columns; on a narrow screen without the rank's own work and the time of its last beat."""
    *numbers, phase, mark = cells
    shown = list(zip(numbers, _WIDTHS, strict=False))[: 5 if width >= _WIDE else 3]
    text = "".join(f"{cell:>{each - 1}} " for cell, each in shown)
    return f"{text} {phase:<{_WIDTHS[5]}}{mark}".rstrip() if width >= _WIDE else f"{text} {phase} {mark}".rstrip()


def _curves(picture: Picture, width: int) -> list[Row]:
    rows = []
    if picture.losses:
        low, high = min(picture.losses), max(picture.losses)
        said = f"{figures.loss(picture.losses[-1])}  ({figures.loss(low)} to {figures.loss(high)})"
        rows.append(Row(_curve("loss", bars(picture.losses, _room(width)), said), "cyan"))
    if picture.goodputs:
        said = f"{picture.book.goodput:.1%} of {human_seconds(picture.book.wall)}"
        rows.append(Row(_curve("goodput", bars(picture.goodputs, _room(width), 0.0, 1.0), said), "green"))
    if picture.book.wall > 0:
        spent = sorted(picture.book.seconds.items(), key=lambda item: -item[1])
        told = [f"{name} {seconds / picture.book.wall:.1%}" for name, seconds in spent if seconds > 0]
        rows.append(Row(cut(f"ledger   {'  '.join(told)}", width), "dim"))
    return rows


def _room(width: int) -> int:
    """Columns for a curve."""
    return max(0, min(width - 42, 120))


def _curve(name: str, drawn: str, said: str) -> str:
    return f"{name:<9}{drawn}{' ' if drawn else ''}{said}"


def bars(values: Sequence[float], width: int, low: float | None = None, high: float | None = None) -> str:
    """The values as bars in at most `width` columns, each the mean of its part, between `low` and `high` (None: the
    least and the greatest of the means)."""
    if not values or width <= 0:
        return ""
    count = min(width, len(values))
    edges = [index * len(values) // count for index in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low = min(means) if low is None else low
    high = max(means) if high is None else high
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round(min(max(mean - low, 0.0), high - low) * scale)] for mean in means)


def goodputs(stretches: Sequence[Stretch], count: int) -> list[float]:
    """The share of new steps in each of `count` equal parts of the time line."""
    if not stretches or stretches[-1].end <= stretches[0].begin:
        return []
    begin = stretches[0].begin
    part = (stretches[-1].end - begin) / count
    found = [0.0] * count
    for stretch in stretches:
        if stretch.bucket == "productive":
            first, last = int((stretch.begin - begin) / part), min(count - 1, int((stretch.end - begin) / part))
            for index in range(min(first, count - 1), last + 1):
                edge = begin + index * part
                found[index] += max(0.0, min(stretch.end, edge + part) - max(stretch.begin, edge)) / part
    return [min(1.0, share) for share in found]


def _fitted(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width)
