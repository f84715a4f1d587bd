"""Makes lines from the bytes of a log. The bytes may arrive in any pieces.

    bytes ── feed ──▶ pending ──▶ Line(NEWLINE)    a newline came
                             ├──▶ Line(CUT)        longer than CAP; it goes on in the next piece
                             └──▶ Line(OPEN)       flush: shown before its newline came

At most CAP bytes are pending. The same bytes give the same lines in any chunking.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol

CAP = 65536


class End(enum.Enum):
    """The reason for the end of a line."""

    NEWLINE = "newline"
    CUT = "cut"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Line:
    """A line to show. Its bytes are not yet safe for a terminal."""

    data: bytes
    end: End = End.NEWLINE
    at: int = field(default=0, compare=False)
    """The place in the file after the line."""


class Splitter(Protocol):
    """Makes lines of bytes."""

    place: int
    """The place in the file of the next byte that is fed."""

    @property
    def pending(self) -> bool:
        """Whether flush() would give a line."""

    @property
    def bar(self) -> bool:
        """Whether the line so far is a progress bar, which replaces itself by carriage returns."""

    def feed(self, data: bytes) -> list[Line]:
        """The lines that `data` completes."""

    def flush(self) -> list[Line]:
        """The pending bytes, as an OPEN line. They are not given again."""

    def end(self) -> list[Line]:
        """Like flush(), but the next byte begins a new line, because it is from another file."""


class LineSplitter:
    """Lines without their ends. A carriage return begins a new state of a line. Only the last state is kept, as in a
    terminal."""

    def __init__(self) -> None:
        self.place = 0
        self._state = bytearray()
        self._before = b""
        self._given = False
        self.bar = False

    @property
    def pending(self) -> bool:
        return bool(self._state or self._before)

    def feed(self, data: bytes) -> list[Line]:
        lines: list[Line] = []
        *whole, rest = data.split(b"\n")
        for part in whole:
            self.place += len(part) + 1
            if self._state or self._before or self._given or b"\r" in part or len(part) >= CAP:
                self._extend(part, lines)
                self._end(lines)
            else:
                lines.append(Line(part, End.NEWLINE, self.place))
        self.place += len(rest)
        self._extend(rest, lines)
        return lines

    def flush(self) -> list[Line]:
        data = bytes(self._state) or self._before
        self._state.clear()
        self._before = b""
        if not data:
            return []
        self._given = True
        return [Line(data, End.OPEN, self.place)]

    def end(self) -> list[Line]:
        lines = self.flush()
        self._given = self.bar = False
        return lines

    def _extend(self, part: bytes, lines: list[Line]) -> None:
        first, *states = part.split(b"\r")
        self._append(first, lines)
        for state in states:
            self.bar = True
            if self._state:
                self._before = bytes(self._state)
                self._state.clear()
            self._append(state, lines)

    def _append(self, data: bytes, lines: list[Line]) -> None:
        self._state += data
        while len(self._state) >= CAP:
            lines.append(Line(bytes(self._state[:CAP]), End.CUT, self.place))
            del self._state[:CAP]
            self._before, self._given = b"", True

    def _end(self, lines: list[Line]) -> None:
        data = bytes(self._state) or self._before
        # A newline after a line that was already cut or flushed does not make another, empty line.
        if data or not self._given:
            lines.append(Line(data, End.NEWLINE, self.place))
        self._state.clear()
        self._before, self._given, self.bar = b"", False, False


class RawSplitter:
    """Lines with their ends and carriage returns. Joined, they are the bytes that came in."""

    def __init__(self) -> None:
        self.place = 0
        self._state = bytearray()

    @property
    def pending(self) -> bool:
        return bool(self._state)

    @property
    def bar(self) -> bool:
        return b"\r" in self._state

    def feed(self, data: bytes) -> list[Line]:
        lines: list[Line] = []
        *whole, rest = data.split(b"\n")
        for part in whole:
            self.place += len(part) + 1
            self._append(part, lines)
            self._state += b"\n"
            lines.append(Line(bytes(self._state), End.NEWLINE, self.place))
            self._state.clear()
        self.place += len(rest)
        self._append(rest, lines)
        return lines

    def flush(self) -> list[Line]:
        data = bytes(self._state)
        self._state.clear()
        return [Line(data, End.OPEN, self.place)] if data else []

    def end(self) -> list[Line]:
        return self.flush()

    def _append(self, part: bytes, lines: list[Line]) -> None:
        self._state += part
        while len(self._state) >= CAP:
            lines.append(Line(bytes(self._state[:CAP]), End.CUT, self.place))
            del self._state[:CAP]
