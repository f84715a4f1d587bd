"""RUN/numbers.json: how a run fares, for the W&B runs and TensorBoard folders of its own program."""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType

from supervisor.core.telling.ledger import report
from supervisor.core.telling.story import Telling
from supervisor.reading.events_file import EventReader
from trainer.rundir.files.codec import encode
from trainer.rundir.files.durable import replace_soon
from trainer.rundir.layout import RunDir
from trainer.rundir.records.boards import Numbers

_EVERY = 1.0
"""Seconds between two looks."""
_SHARE = 0.01
"""The most of one core's time."""
_GOODPUT = 0.001
"""A smaller change of the goodput is no news."""


class SharedNumbers:
    """Keeps the file up to date while the block runs, in a thread of its own. An error of the disk leaves old numbers,
    and nothing else."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._reader, self._telling = EventReader(run.events), Telling()
        self._written: Numbers | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="numbers", daemon=True)

    def __enter__(self) -> SharedNumbers:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _serve(self) -> None:
        pause = 0.0
        over = False
        while not over:
            # Once more at the end: the file stays.
            over = self._over.wait(pause)
            began = time.thread_time()
            with contextlib.suppress(OSError):
                self._look()
            pause = max(_EVERY, (time.thread_time() - began) / _SHARE)

    def _look(self) -> None:
        for event in self._reader.read():
            self._telling.hear(event.fields)
        story = self._telling.story
        book = report(story, time.monotonic() + story.offset)
        now, old = Numbers(story.restarts, book["lost_steps"], round(book["goodput"], 4)), self._written
        counts = old is not None and (now.restarts, now.lost_steps) == (old.restarts, old.lost_steps)
        if old is None or not counts or abs(now.goodput - old.goodput) >= _GOODPUT:
            replace_soon(self._run.numbers, encode(now))
            self._written = now
