"""The terminal of somebody who watches a run: the training's own lines as they are, events below their breath, and at
the bottom one line that is always true."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from supervisor.live.line import cut
from supervisor.reading.brief import brief
from supervisor.reading.follow import EventRecord, Record
from supervisor.reading.lines import End
from supervisor.reading.plain import decode
from supervisor.reading.wording import Restarts

_DIM, _BOLD, _YELLOW, _RED = "2", "1", "33", "31"
_LEVELS = {"warning": _YELLOW, "error": _RED}
_ERASE = b"\r\x1b[K"
_NARROWEST = 10


def columns(fd: int) -> int:
    """The width of the terminal, without its last column: a character there may begin a new line."""
    try:
        width = os.get_terminal_size(fd).columns
    except OSError:
        width = 0
    return max(_NARROWEST, (width or 80) - 1)


def fold(text: str, width: int, indent: int) -> str:
    """`text` over several lines, broken between words. All but the first have `indent` columns before them."""
    indent = min(indent, width // 3)
    lines = textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        expand_tabs=False,
    )
    return "\n".join(lines)


class Lines:
    """Renders records for one rank's watcher. `asked` has the words for a request to stop."""

    def __init__(
        self, restarts: Restarts, colour: bool, width: Callable[[], int], asked: Callable[[Mapping[str, Any]], str]
    ) -> None:
        self._restarts, self._colour, self._width, self._asked = restarts, colour, width, asked
        self._attempt = 0
        self._stopping = False

    def __call__(self, record: Record) -> bytes:
        """The bytes of the record. None of ours is longer than a line, or is broken within a word."""
        text = ""
        if record.attempt > self._attempt:
            self._attempt = record.attempt
            text = self._painted(_BOLD, cut(self._restarts.separator(record.attempt), self._width())) + "\n"
        if isinstance(record, EventRecord):
            text += self._event(record)
        else:
            text += f"{decode(record.line.data)}{' …' if record.line.end is End.CUT else ''}\n"
        return text.encode("utf-8", "backslashreplace")

    def _event(self, record: EventRecord) -> str:
        event, width = record.event, self._width()
        if event.name == "stop_requested":
            self._stopping = True
            return self._folded(_BOLD, f"● {self._asked(event.fields)}", width)
        if self._stopping and event.name == "signal_sent" and event.fields.get("signal") == "SIGKILL":
            return self._folded(_BOLD, "● stopping now", width)
        if not (said := brief(event)):
            return ""
        level = _LEVELS.get(str(event.fields.get("level")))
        if level is None:
            return self._painted(_DIM, cut(f"● {said}", width)) + "\n"
        return self._folded(level, f"● {said}", width)

    def _folded(self, colour: str, text: str, width: int) -> str:
        """The whole text: a warning is there to be read."""
        return "".join(self._painted(colour, line) + "\n" for line in fold(text, width, 2).split("\n"))

    def _painted(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text


class Bottom:
    """The last line of a terminal, which the next output replaces."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour
        self._shown = b""

    def under(self, data: bytes) -> bytes:
        """The bytes that write `data` in place of the line. The line is not shown any more."""
        shown, self._shown = self._shown, b""
        return (_ERASE if shown else b"") + data

    def show(self, text: str) -> bytes:
        """The bytes that show `text`. None if it is shown already."""
        data = (f"\x1b[7m{text}\x1b[0m" if self._colour else text).encode("utf-8", "backslashreplace")
        if data == self._shown:
            return b""
        self._shown = data
        return _ERASE + data
