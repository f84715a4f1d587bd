"""The runs of a folder, read on as they grow: nothing that was read is read again."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisor.core.telling.story import Story, Telling
from supervisor.core.words import RunState
from supervisor.errors import Refusal
from supervisor.reading.events_file import EventReader
from supervisor.reading.local_time import moment
from supervisor.run.folder.lock import is_held
from supervisor.run.runs import Known, all_runs
from supervisor.run.status import status

MOST = 200
"""Runs on the list of runs: the newest."""
_RUNS_EVERY = 3.0
"""Seconds between two looks for new runs."""
_SKEW = 3600.0
"""Seconds by which the clock of a file server may be behind."""


class Reader:
    """One run, whose events are told as they come."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self._events = EventReader(known.run.events)
        self._telling = Telling()

    def story(self) -> Story:
        """The story so far."""
        for event in self._events.read():
            self._telling.hear(event.fields)
        story = self._telling.story
        lost = not story.over and not is_held(self.known.run)
        return dataclasses.replace(story, state=RunState.LOST) if lost else story


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """A run at one moment: its name in its folder, its story, and its `status --json`."""

    name: str
    story: Story
    status: Mapping[str, Any]


class Runs:
    """The readable runs under `root`, by the names of their folders. For several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._readers: dict[str, Reader] = {}

    def look(self) -> list[Look]:
        """The newest runs, the newest first. One that cannot be read is left out."""
        found = []
        with self._lock:
            for name, reader in self._all()[:MOST]:
                try:
                    story = reader.story()
                    found.append(Look(name, story, status(reader.known, story)))
                except Refusal:
                    continue
        return found

    def find(self, name: str) -> Known | None:
        """The run whose folder has that name. A path is no name."""
        return next((known for known in all_runs(self.root) if known.run.path.name == name), None)

    def _all(self) -> list[tuple[str, Reader]]:
        kept: dict[str, Reader] = {}
        for known in all_runs(self.root):
            name = known.run.path.name
            old = self._readers.get(name)
            # A folder that was removed and made again is another run.
            same = old is not None and old.known.spec == known.spec
            kept[name] = old if same and old is not None else Reader(known)
        self._readers = kept
        return list(kept.items())


class News:
    """What is new in all runs, for one stream of events."""

    def __init__(self, runs: Runs, since: str) -> None:
        """Events of `since` (ISO) and later are new."""
        self._root, self._since = runs.root, since
        self._readers: dict[Path, EventReader] = {}
        self._runs: list[Known] = []
        self._due = float("-inf")
        began = moment(since)
        self._before = began.timestamp() - _SKEW if began else 0.0

    def read(self) -> list[Mapping[str, Any]]:
        """The new events, each with `folder`: the name of the run's folder."""
        found: list[Mapping[str, Any]] = []
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _RUNS_EVERY
            self._runs = all_runs(self._root)[:MOST]
        for known in self._runs:
            reader = self._readers.get(known.run.path)
            if reader is None:
                # An event is in its file at the time that it has.
                if _changed(known.run.events) < self._before:
                    continue
                reader = self._readers[known.run.path] = EventReader(known.run.events)
            for event in reader.read():
                if str(event.fields.get("ts", "")) >= self._since:
                    found.append({**event.fields, "folder": known.run.path.name})
        return sorted(found, key=lambda event: str(event.get("ts", "")))


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
