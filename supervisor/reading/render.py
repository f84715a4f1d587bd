"""Records as bytes for stdout: text for people, JSON lines for programs, or a log's own bytes."""

from __future__ import annotations

import datetime
from typing import Any, Protocol

from supervisor.reading.events_file import Event
from supervisor.reading.follow import EventRecord, Record
from supervisor.reading.lines import End
from supervisor.reading.local_time import local_epoch
from supervisor.reading.plain import decode
from supervisor.reading.wording import Restarts, event_text
from trainer.rundir.files.codec import encode

_RANKS = ("36", "33", "35", "34", "32", "96", "95", "93")
"""SGR colours. Neighbours differ for colour-blind people too."""
_LEVELS = {"warning": "33", "error": "31"}
_DIM = "2"


class Renderer(Protocol):
    def __call__(self, record: Record) -> bytes:
        """The bytes to write for `record`, with its line end."""


class TextRenderer:
    """`a1 r0 │ text`: the attempt, then the rank. L is the launcher, ● an event. A separator comes before each
    restart."""

    def __init__(self, restarts: Restarts, colour: bool = False, prefix: bool = True, timestamps: bool = False) -> None:
        """`timestamps`: each log line has its local time before it, and events have theirs."""
        self._restarts, self._colour, self._prefix, self._timestamps = restarts, colour, prefix, timestamps
        self._attempt = 0
        self._width = len("a0 r0")

    def __call__(self, record: Record) -> bytes:
        text = ""
        if record.attempt > self._attempt:
            self._attempt = record.attempt
            text = self._paint("1", self._restarts.separator(record.attempt)) + "\n"
        if isinstance(record, EventRecord):
            words = event_text(record.event)
            if self._timestamps:
                words = f"{local_epoch(record.event.time)} {words.partition(' ')[2]}"
            shown = self._paint(_LEVELS.get(str(record.event.fields.get("level")), "1"), words)
            text += f"{self._before(record.attempt, '●', '1')}{shown}\n"
        else:
            rank = record.rank
            tag, colour = ("L", _DIM) if rank is None else (f"r{rank}", _RANKS[rank % len(_RANKS)])
            mark = " …" if record.line.end is End.CUT else ""
            time = f"{self._paint(_DIM, f'{local_epoch(record.at):<19}')} " if self._timestamps else ""
            text += f"{self._before(record.attempt, tag, colour)}{time}{decode(record.line.data)}{mark}\n"
        return text.encode("utf-8", "backslashreplace")

    def _before(self, attempt: int, tag: str, colour: str) -> str:
        if not self._prefix:
            return ""
        prefix = f"a{attempt} {tag}"
        self._width = max(self._width, len(prefix))
        return self._paint(colour, f"{prefix:<{self._width}} │") + " "

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text


def render_json(record: Record) -> bytes:
    """One JSON object on each line: an event as it is in the file, with `stream`, or a log line.

    A log line has `ts` (the time by which it was written, null if that was not noted), `attempt`, `stream`, `rank`,
    `text` (safe for a terminal). If no newline ended it, it has `end`: cut or open.
    """
    if isinstance(record, EventRecord):
        return encode({**record.event.fields, "stream": "event"}) + b"\n"
    line: dict[str, Any] = {
        "ts": None if record.at is None else _iso(record.at),
        "attempt": record.attempt,
        "stream": "launcher" if record.rank is None else "rank",
        "rank": record.rank,
        "text": decode(record.line.data),
    }
    if record.line.end is not End.NEWLINE:
        line["end"] = record.line.end.value
    return encode(line) + b"\n"


def render_raw(record: Record) -> bytes:
    """The bytes as they are in the file. The follower must have been made with raw=True."""
    return event_line(record.event) if isinstance(record, EventRecord) else record.line.data


def event_line(event: Event) -> bytes:
    return event.line + b"\n"


def _iso(seconds: float) -> str:
    time = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
