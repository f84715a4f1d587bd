"""Which rows of a W&B run are already there, and come again. Pure, but for the notes of places, a small file.

A row has a step of W&B's own. A program that does not give it has one more with each row, whatever its training step.
So the place of each row is noted: how many training steps were done, and how many rows came since.
"""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ..progress import Position

_NOTE = struct.Struct("<qqq")


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """The place of a row that the program logs without a step."""

    done: int
    """Training steps that are done."""
    nth: int
    """Rows before it, since then."""


class Places:
    """The noted places of the rows of one run. A note is written only where the training step is another one than that
    of the row before."""

    def __init__(self, path: Path, begins: bool) -> None:
        """`begins`: earlier notes do not count."""
        self._path, self._last = path, -1
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, exist_ok=True)
            if begins:
                path.unlink(missing_ok=True)

    def of(self, step: int) -> Row | None:
        """The place of the row with that step of W&B, from the notes of earlier attempts."""
        try:
            data = self._path.read_bytes()
        except OSError:
            return None
        found = None
        for number, done, nth in _NOTE.iter_unpack(data[: len(data) // _NOTE.size * _NOTE.size]):
            # A row that was noted and never written is noted again by the next attempt.
            if number <= step:
                found = Row(done, nth + step - number)
        return found

    def note(self, step: int, row: Row) -> None:
        """The row with that step of W&B is logged there."""
        if row.done != self._last:
            self._last = row.done
            with contextlib.suppress(OSError):
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                try:
                    os.write(fd, _NOTE.pack(step, row.done, row.nth))
                finally:
                    os.close(fd)


class Rows:
    """The rows of one run of W&B, in one process. Tells which are logged, and with which step."""

    def __init__(self, places: Places, have: int, starts: int) -> None:
        """`have`: the step of the last row of earlier attempts. `starts`: W&B's step of the next row here, if nothing
        is said."""
        self._places, self._have = places, have
        self._next = max(have + 1, starts)
        self._say = starts <= have
        self._until = places.of(have) if have >= 0 else None
        self._row = Row(-1, 0)

    def again(self, at: Position | None, step: int | None, commit: bool | None) -> bool:
        """Whether this part of a row is already there. `at`: the program's position."""
        if step is not None:
            return step <= self._have
        if at is not None and at.began is not None and at.done != self._row.done:
            self._row = Row(at.done, 0)
        if self._until is None:
            return False
        if at is None or at.began is None or self._row > self._until:
            return False
        if commit is not False:
            self._row = Row(self._row.done, self._row.nth + 1)
        return True

    def placed(self, step: int | None, commit: bool | None) -> tuple[int | None, bool | None]:
        """The row's step and commit for W&B. The first row behind those that are there gets its step; the others follow
        by themselves."""
        if self._say and step is None:
            self._say = False
            return self._next, commit is not False
        self._say = False
        return step, commit

    def logged(self, step: int | None, commit: bool | None) -> None:
        """A part of a row was logged, with what the program gave."""
        if step is not None:
            self._next = max(self._next, step)
        if commit or (commit is None and step is None):
            if step is None:
                self._places.note(self._next, self._row)
                self._row = Row(self._row.done, self._row.nth + 1)
            self._next += 1
