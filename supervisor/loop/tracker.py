"""Keeps the progress of a run: it takes observations, and tells the news."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from supervisor.core.actions import Emit
from supervisor.core.telling.news import News, Note, hear, tell
from supervisor.core.telling.progress import Progress, begin
from supervisor.loop.flush import Outcome
from supervisor.loop.narrator import Narrator
from supervisor.run.previous import Previous
from trainer.rundir.layout import RunDir, committed_steps, newest_checkpoint

_SCAN_EVERY = 0.5


class Tracker:
    """`progress` includes everything that was given to it."""

    def __init__(self, run: RunDir, previous: Previous, narrator: Narrator) -> None:
        told = previous.checkpoints if previous.unfinished else None
        self.progress = begin(previous.story.high_step, committed_steps(run.checkpoints), told)
        self._run, self._narrator = run, narrator
        self._scan_at = float("-inf")

    def see(self, news: News, attempt: int, nproc: int) -> None:
        """Takes the news of an attempt."""
        self._learn(tell(self.progress, replace(news, notes=tuple(self._narrator.fresh(news.notes))), attempt, nproc))

    def hear(self, notes: Iterable[Note]) -> None:
        """Takes notes without other news."""
        self._learn(hear(self.progress, self._narrator.fresh(notes)))

    def reached(self, step: int) -> None:
        """Notes a finished step that no event has told."""
        self.progress = self.progress.reached(step)

    def begin_anew(self) -> None:
        """No step is done: the ranks will move everything aside that was saved."""
        self.progress = replace(self.progress, high_step=-1)

    def flushed(self, outcomes: Iterable[Outcome | None], now: float) -> None:
        """Takes the outcomes of flushes; None for one whose report was not read."""
        for outcome in outcomes:
            if outcome is None:
                self.scan(now, final=True)
            else:
                self._learn(self.progress.flushed(outcome))

    def scan(self, now: float, final: bool) -> None:
        """Finds the newest checkpoint on disk, also if its rank died between the commit and the note."""
        if final or now >= self._scan_at:
            self._scan_at = now + _SCAN_EVERY
            self._learn(self.progress.scanned(newest_checkpoint(self._run.checkpoints), final))

    def catch_up(self) -> None:
        """Tells every checkpoint that existed before this supervisor."""
        self._learn(self.progress.caught_up())

    def _learn(self, told: tuple[Progress, list[Emit]]) -> None:
        self.progress, events = told
        self._narrator.tell(events)
