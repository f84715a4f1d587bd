"""Reading events.jsonl: whole lines that are events, whatever else stands between them.

A line counts when it ends with a newline and is a JSON object with an event name in `msg`. The torn last line of a
supervisor that was killed, and lines that others wrote, are passed over and counted.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

WINDOW = 1 << 22


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it was read."""

    line: bytes
    """As it stands in the file, without its newline."""
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


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        fields = orjson.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and isinstance(fields.get("msg"), str) else None


class EventReader:
    """Gives each event of the file once, in the order of the file, also while it is written."""

    def __init__(self, path: Path) -> None:
        self.skipped = 0
        """Whole lines that are no events."""
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[Event]:
        """The events that were added since the last call. A file that shrank below what was read is read again."""
        try:
            file = self._path.open("rb")
        except OSError:
            return
        with file:
            if file.seek(0, 2) < self._offset:
                self._offset = 0
            file.seek(self._offset)
            while data := file.read(WINDOW):
                whole = data.rfind(b"\n") + 1
                if not whole and len(data) < WINDOW:
                    return  # the last line, not whole yet, or torn: a new supervisor cuts it off
                whole = whole or len(data)
                self._offset += whole
                file.seek(self._offset)
                yield from self._events(data[:whole])

    def _events(self, data: bytes) -> Iterator[Event]:
        for line in data.split(b"\n"):
            fields = _parse(line)
            if fields is not None:
                yield Event(line, fields)
            elif line.strip():
                self.skipped += 1


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects among the lines of `path`; a file that is not there has none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return []
    found = []
    for line in filter(None, lines):
        try:
            body = orjson.loads(line)
        except ValueError:
            continue
        if isinstance(body, dict):
            found.append(body)
    return found


def read_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(events, skipped): all events of the file, and how many lines are none, a torn last one among them.

    Never raises for what is in the file; a file that is not there has no events.
    """
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError:
        return [], 0
    parsed = [_parse(line) for line in lines if line]
    events = [event for event in parsed if event is not None]
    return events, len(parsed) - len(events) + bool(last.strip())
