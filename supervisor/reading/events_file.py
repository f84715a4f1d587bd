"""Reads events.jsonl: its whole lines that are events.

A line counts if it ends with a newline and is a JSON object with an event name in `msg`. Other lines are skipped and
counted: the torn last line of a killed supervisor, and lines of other writers.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.rundir.files.json_lines import Follower


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it was read."""

    line: bytes
    """The line in the file, without its newline."""
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.fields["msg"])

    @property
    def attempt(self) -> int:
        attempt = self.fields.get("attempt")
        return attempt if isinstance(attempt, int) else 0

    @property
    def time(self) -> float | None:
        """Seconds since the epoch, or None if `ts` is not a time."""
        try:
            return datetime.datetime.fromisoformat(str(self.fields["ts"]).replace("Z", "+00:00")).timestamp()
        except (KeyError, ValueError, OverflowError, OSError):
            return None


class EventReader(Follower):
    """Gives each event of the file once, in the order of the file, even while it is being written."""

    def read(self) -> Iterator[Event]:
        """The events that were added since the last call."""
        for line, fields in self.objects():
            if isinstance(fields.get("msg"), str):
                yield Event(line, fields)
            else:
                self.skipped += 1


def read_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(events, skipped): all events of the file, and the number of other lines. A torn last line counts as skipped.

    No content of the file makes it raise. A missing file has no events. Lines that are not events take no memory, even
    if they are very long.
    """
    reader = EventReader(path)
    events = [event.fields for event in reader.read()]
    return events, reader.skipped + reader.torn
