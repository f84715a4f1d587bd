"""Keeps the progress of a run: feeds it with what is seen, and has told what it says is new."""

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
    """`progress` is up to date with all that it was handed."""

    def __init__(self, run: RunDir, previous: Previous, narrator: Narrator) -> None:
        told = previous.checkpoints if previous.unfinished else None
        self.progress = begin(previous.story.high_step, committed_steps(run.checkpoints), told)
        self._run, self._narrator = run, narrator
        self._scan_at = float("-inf")

    def see(self, news: News, attempt: int, nproc: int) -> None:
        """What is new in an attempt."""
        self._learn(tell(self.progress, replace(news, notes=tuple(self._narrator.fresh(news.notes))), attempt, nproc))

    def hear(self, notes: Iterable[Note]) -> None:
        """Notes alone."""
        self._learn(hear(self.progress, self._narrator.fresh(notes)))

    def reached(self, step: int) -> None:
        """A step that nobody told of was done."""
        self.progress = self.progress.reached(step)

    def flushed(self, outcomes: Iterable[Outcome | None], now: float) -> None:
        """How flushes have ended; None for one that nobody heard."""
        for outcome in outcomes:
            if outcome is None:
                self.scan(now, final=True)
            else:
                self._learn(self.progress.flushed(outcome))

    def scan(self, now: float, final: bool) -> None:
        """The newest checkpoint on disk is known, also when its rank died between the commit and the note of it."""
        if final or now >= self._scan_at:
            self._scan_at = now + _SCAN_EVERY
            self._learn(self.progress.scanned(newest_checkpoint(self._run.checkpoints), final))

    def catch_up(self) -> None:
        """Every checkpoint that was there before us has been told of."""
        self._learn(self.progress.caught_up())

    def _learn(self, told: tuple[Progress, list[Emit]]) -> None:
        self.progress, events = told
        self._narrator.tell(events)
