"""A run as it is now, look by look: its story from the events that have come, its numbers from the beats."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from supervisor.core.hangs.timings import Pace
from supervisor.core.telling.story import Story, Telling
from supervisor.core.words import RunState
from supervisor.live.mirror import all_beats
from supervisor.live.numbers import Numbers, numbers
from supervisor.reading.events_file import Event, EventReader
from trainer.rundir.layout import RunDir
from trainer.rundir.records.beats import Beat

CHECK = 1.0
"""Seconds between two looks for what takes longer: the newest checkpoint, and whether a supervisor lives."""


@dataclass(frozen=True, slots=True)
class Saved:
    """The newest state that a restart could go on from."""

    step: int | None
    written: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Now:
    """One look."""

    story: Story
    state: str
    beats: tuple[Beat, ...]
    numbers: Numbers
    speeds: dict[int, float]
    """Seconds of a step, by rank: the median of the last looks."""
    own: dict[int, float]
    """The same for a rank's own work, without waiting for the others."""
    saved: Saved | None
    next_s: float | None
    """Seconds until the next attempt, while the run waits for it."""


class View:
    """Looks at one run, as often as it is asked. It costs a read of the beats and of the new events."""

    def __init__(
        self,
        run: RunDir,
        held: Callable[[], bool],
        saved: Callable[[], Saved | None],
        now_of: Callable[[Story], float],
    ) -> None:
        """`now_of`: the present on the time line of a story."""
        self._run, self._held, self._find, self._now_of = run, held, saved, now_of
        self._reader, self._telling = EventReader(run.events), Telling()
        self._speed = Speed()
        self._checked = float("-inf")
        self._alive, self._saved = True, saved()
        self.new: list[Event] = []
        """The events that the last look has read."""

    def look(self) -> Now:
        """The run now."""
        self.new = list(self._reader.read())
        for event in self.new:
            self._telling.hear(event.fields)
        story, now = self._telling.story, time.monotonic()
        if now >= self._checked + CHECK:
            self._checked, self._alive, self._saved = now, self._held(), self._find()
        attempt = story.attempt
        beats = all_beats(self._run.attempt(attempt.number)) if attempt is not None else []
        self._speed.see(attempt.number if attempt is not None else -1, beats)
        state = story.state if story.over or self._alive else RunState.LOST
        told = replace(story, state=state)
        present = self._now_of(told)
        wait = story.next_at - present if story.next_at is not None else None
        return Now(
            story=told,
            state=state,
            beats=tuple(beats),
            numbers=numbers(told, beats, self._speed.pace(), present),
            speeds=_typical(self._speed.paces),
            own=_typical(self._speed.own),
            saved=self._saved,
            next_s=max(0.0, wait) if wait is not None and state == RunState.BACKOFF else None,
        )


class Speed:
    """The seconds of a step, as a series of looks at the beats shows them."""

    def __init__(self) -> None:
        self._attempt = -1
        self._last: dict[int, tuple[int, float, float]] = {}
        self.paces: dict[int, Pace] = {}
        """By rank."""
        self.own: dict[int, Pace] = {}
        """By rank: the time of its own work."""
        self._slowest = Pace()

    def see(self, attempt: int, beats: list[Beat]) -> None:
        """Takes one look. The median outlives an attempt until the next one has a step."""
        if attempt != self._attempt:
            self._attempt, self._last, self.paces, self.own = attempt, {}, {}, {}
        taken = []
        for beat in beats:
            step, at, own = self._last.get(beat.rank, (beat.step, beat.at, beat.own))
            if beat.step > step and beat.at > at and step > 0:
                seconds = (beat.at - at) / (beat.step - step)
                taken.append(seconds)
                self.paces[beat.rank] = self.paces.get(beat.rank, Pace()).stepped(seconds)
                if beat.own > own:
                    worked = (beat.own - own) / (beat.step - step)
                    self.own[beat.rank] = self.own.get(beat.rank, Pace()).stepped(worked)
            if beat.step != step or beat.rank not in self._last:
                self._last[beat.rank] = beat.step, beat.at, beat.own
        if taken:
            self._slowest = self._slowest.stepped(max(taken))

    def pace(self) -> Pace:
        """That of the slowest rank in each look."""
        return self._slowest


def _typical(paces: Mapping[int, Pace]) -> dict[int, float]:
    return {rank: pace.typical for rank, pace in paces.items()}
