"""A terminal, and what its screen shows."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import termios
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tests.support.waiting import TIME_LIMIT

T = TypeVar("T")
_CONTROL = re.compile("\x1b\\[([?]?)([0-9;]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b[=>78]")


class Screen:
    """What a terminal of that size shows after the bytes that were fed. It knows what rich and we use."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.lines = [""] * rows
        self.broken: list[str] = []
        """The first parts of lines that were longer than the screen is wide."""
        self.scrolled: list[str] = []
        """The lines that have left the screen at its top."""
        self.alternate = False
        self._main: tuple[list[str], int, int] = ([], 0, 0)
        self._row = self._column = 0
        self._rest = ""

    def feed(self, text: str) -> None:
        text = self._rest + text
        # The end may be the begin of a control sequence.
        cut = text.rfind("\x1b")
        self._rest = text[cut:] if cut >= 0 and not _CONTROL.match(text, cut) and len(text) - cut < 16 else ""
        text = text[: len(text) - len(self._rest)]
        at = 0
        while at < len(text):
            if (found := _CONTROL.match(text, at)) is not None:
                at = found.end()
                if found[3]:
                    self._control(found[1], [int(n) if n else 0 for n in found[2].split(";")], found[3])
            else:
                self._put(text[at])
                at += 1

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)

    def _put(self, letter: str) -> None:
        if letter == "\r":
            self._column = 0
        elif letter == "\n":
            self._down()
        elif letter == "\b":
            self._column = max(0, self._column - 1)
        elif letter.isprintable():
            if self._column == self.columns:
                self.broken.append(self.lines[self._row])
                self._column = 0
                self._down()
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
            self._column += 1

    def _down(self) -> None:
        self._row += 1
        if self._row == self.rows:
            self.scrolled.append(self.lines[0])
            self.lines = [*self.lines[1:], ""]
            self._row -= 1

    def _control(self, private: str, numbers: list[int], what: str) -> None:
        first, line = numbers[0], self.lines[self._row]
        if private and first == 1049:
            self.alternate = what == "h"
            if self.alternate:
                self._main = self.lines, self._row, self._column
                self.lines, self._row, self._column = [""] * self.rows, 0, 0
            else:
                self.lines, self._row, self._column = self._main
        elif what == "H":
            self._row, self._column = max(first, 1) - 1, max([*numbers, 1][1], 1) - 1
        elif what == "A":
            self._row = max(0, self._row - max(first, 1))
        elif what == "B":
            self._row = min(self.rows - 1, self._row + max(first, 1))
        elif what == "G":
            self._column = max(first, 1) - 1
        elif what == "K":
            self.lines[self._row] = "" if first == 2 else line[: self._column]
        elif what == "J":
            below = self._row + (first == 0)
            self.lines = [text if row < below and first == 0 else "" for row, text in enumerate(self.lines)]


class Terminal:
    """A terminal of that size, which takes all that is written, until close()."""

    def __init__(self, columns: int, rows: int) -> None:
        self.screen = Screen(columns, rows)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._fd, slave = pty.openpty()
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.file = os.fdopen(slave, "w")
        """What the command has as its stdin, stdout and stderr."""
        self._closing = False
        self._feeding = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def until(self, what: Callable[[str], T], seconds: float = TIME_LIMIT) -> T:
        """The first true value of `what` for the text of the screen."""
        end = time.monotonic() + seconds
        while True:
            with self._feeding:
                text = self.screen.text()
            if value := what(text):
                return value
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds} s:\n{text}")
            time.sleep(0.02)

    def read(self) -> str:
        """All that was ever on the screen and has not been replaced."""
        with self._feeding:
            return "\n".join([*self.screen.scrolled, self.screen.text()])

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def close(self) -> None:
        self._closing = True
        self._reader.join()
        self.file.close()
        os.close(self._fd)

    def _read(self) -> None:
        while not self._closing:
            if select.select([self._fd], [], [], 0.05)[0]:
                text = self._decoder.decode(os.read(self._fd, 65536))
                with self._feeding:
                    self.screen.feed(text)
