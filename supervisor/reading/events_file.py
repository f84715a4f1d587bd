"""Reading events.jsonl: whole lines that are events, whatever else stands between them.

A line counts when it ends with a newline and is a JSON object with an event name in `msg`. The torn last line of a
supervisor that was killed, and lines that others wrote, are passed over and counted.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from trainer.rundir.files.codec import decode
from trainer.rundir.files.untrusted_files import open_file

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


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        return decode(line, dict[str, Any])
    except ValueError:
        return None


def _parse(line: bytes) -> dict[str, Any] | None:
    fields = _object(line)
    return fields if fields is not None and isinstance(fields.get("msg"), str) else None


def _opened(path: Path) -> BinaryIO:
    return os.fdopen(open_file(path), "rb")


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The whole lines of `file` from where it stands, some MiB of them at once. A line longer than that comes in pieces; the
    last line is not given before its newline has come."""
    while data := file.read(WINDOW):
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) < WINDOW:
            file.seek(-len(data), os.SEEK_CUR)
            return  # not whole yet, or torn: a new supervisor cuts it off
        whole = whole or len(data)
        file.seek(whole - len(data), os.SEEK_CUR)
        yield data[:whole]


class EventReader:
    """Gives each event of the file once, in the order of the file, also while it is written."""

    def __init__(self, path: Path) -> None:
        self.skipped = 0
        """Whole lines that are no events."""
        self.torn = False
        """Whether there was, when the file was last read, a last line without its newline."""
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[Event]:
        """The events that were added since the last call. A file that shrank below what was read is read again."""
        try:
            file = _opened(self._path)
        except OSError:
            return
        with file:
            if file.seek(0, os.SEEK_END) < self._offset:
                self._offset = 0
            file.seek(self._offset)
            for data in _lines(file):
                self._offset += len(data)
                yield from self._events(data)
            self.torn = bool(file.read(WINDOW).strip())

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
        file = _opened(path)
    except OSError:
        return []
    with file:
        found = [_object(line) for data in _lines(file) for line in data.split(b"\n")]
        found.append(_object(file.read(WINDOW)))
    return [body for body in found if body is not None]


def read_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """(events, skipped): all events of the file, and how many lines are none, a torn last one among them.

    Never raises for what is in the file; a file that is not there has no events. Lines that are no events take no memory,
    however long they are.
    """
    reader = EventReader(path)
    events = [event.fields for event in reader.read()]
    return events, reader.skipped + reader.torn
