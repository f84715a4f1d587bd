"""A file of numbers for node_exporter's textfile collector, kept up to date while a run lives.

See https://github.com/prometheus/node_exporter#textfile-collector: the file is replaced as a whole.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

from supervisor.core.telling.ledger import report
from supervisor.errors import Refusal
from supervisor.pages.exposition import exposition
from supervisor.run.events import EventLog
from supervisor.run.runs import load
from supervisor.run.status import now_of, status, story_of
from trainer.rundir.files.durable import replace_soon
from trainer.rundir.layout import RunDir

_EVERY = 15.0
"""Seconds; Prometheus usually asks as often."""
_SHARE = 0.01
"""The most of one core's time. The story of a run of a million events takes seconds to read."""


class Textfile:
    """Writes the file while the block runs, in a thread of its own, and once more at its end. Other users can read it.

    An error, of the disk or of ours, is a warning at the end, and nothing else.
    """

    def __init__(self, path: Path, run: RunDir, log: EventLog) -> None:
        self._path, self._run, self._log = path, run, log
        self._over = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)

    def __enter__(self) -> Textfile:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self.write()
        if self._problem:
            text = f"--metrics-file {self._path} could not always be written: {self._problem}"
            self._log.emit("warning", "warning", text=text)

    def _serve(self) -> None:
        pause = 0.0
        while not self._over.wait(pause):
            began = time.thread_time()
            self.write()
            pause = max(_EVERY, (time.thread_time() - began) / _SHARE)

    def write(self) -> None:
        """The file holds the present numbers."""
        try:
            known = load(self._run.path)
            if known is not None:
                story = story_of(known.run)
                text = exposition([(known.label, status(known), report(story, now_of(story)))])
                replace_soon(self._path, text, mode=0o644)
        except Exception as error:
            # Also one of ours, or of a damaged file of the run: the training is worth more than its numbers.
            self._problem = str(error) if isinstance(error, OSError | Refusal) else f"{type(error).__name__}: {error}"
