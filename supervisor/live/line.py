"""The line that is always true: state, step of how many, speed, time to go, loss, restarts, last checkpoint,
standby."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from supervisor.core.size import counted, human_seconds
from supervisor.core.telling import figures
from supervisor.core.words import EventName, RunState
from supervisor.live.view import Now
from supervisor.reading.plain import plain

_SEPARATOR = "  "


@dataclass(frozen=True, slots=True)
class Part:
    order: int
    """A part with a higher number is left out first."""
    text: str
    short: str = ""

    def said(self, shorter: bool) -> str:
        return self.short if shorter and self.short else self.text


def line(now: Now, width: int | None = None) -> str:
    """The line. It has no more columns than `width`: it is said shorter, then the least important parts are left out.
    Nothing is cut in a word."""
    parts = _parts(now)
    text = _joined(parts, False)
    if width is None or cell_len(text) <= width:
        return text
    while len(parts) > 1 and cell_len(_joined(parts, True)) > width:
        parts.remove(max(parts, key=lambda part: part.order))
    return cut(_joined(parts, True), width)


def cut(text: str, width: int) -> str:
    """`text` in at most `width` columns, cut between two words, with an ellipsis. Nothing if there is no column."""
    if width < 1:
        return ""
    if cell_len(text) <= width:
        return text
    kept = ""
    for word in text.split(" "):
        longer = f"{kept} {word}" if kept else word
        if cell_len(longer) > width - 2:
            break
        kept = longer
    while not kept and cell_len(text) > width - 1:
        text = text[:-1]
    return f"{kept} …" if kept else f"{text}…"


def _joined(parts: Sequence[Part], shorter: bool) -> str:
    # A run's files may be anybody's.
    return plain(_SEPARATOR.join(part.said(shorter) for part in parts))


def _parts(now: Now) -> list[Part]:
    numbers, story = now.numbers, now.story
    parts = [Part(0, str(now.state))]
    if now.next_s is not None:
        parts.append(Part(1, f"next attempt in {human_seconds(now.next_s)}"))
    if numbers.doing is not None:
        parts.append(Part(1, numbers.doing))
    parts += _progress(now)
    if numbers.loss is not None:
        parts.append(Part(4, f"loss {figures.loss(numbers.loss)}"))
    if story.restarts:
        parts.append(Part(5, counted(story.restarts, "restart")))
    if now.saved is not None:
        step = f"saved {now.saved.step}" if now.saved.step is not None else "saved"
        ago = human_seconds(max(0.0, time.time() - now.saved.written))
        parts.append(Part(6, f"{step}, {ago} ago", step))
    if standby := _standby(now):
        parts.append(Part(7, standby))
    return parts


def _progress(now: Now) -> list[Part]:
    numbers, parts = now.numbers, list[Part]()
    if numbers.step is not None and numbers.total is not None:
        step, total, share = numbers.step, numbers.total, figures.share(numbers.step, numbers.total)
        parts.append(Part(1, f"step {step} of {total}, {share}", f"{step}/{total} {share}"))
    elif numbers.step is not None:
        parts.append(Part(1, f"step {numbers.step}"))
    # Of a run that makes no steps now, the speed of the past is no news.
    if now.state == RunState.RUNNING and numbers.doing is None and numbers.step_ms is not None:
        parts.append(Part(3, figures.per_step(numbers.step_ms)))
    if numbers.eta_s is not None and numbers.doing is None:
        parts.append(Part(2, f"{figures.left(numbers.eta_s)} left"))
    return parts


def _standby(now: Now) -> str:
    event = now.story.standby
    if event is None or now.story.over or now.state == RunState.LOST:
        return ""
    return "no standby" if event.get("msg") == EventName.STANDBY_LOST else "standby ready"
