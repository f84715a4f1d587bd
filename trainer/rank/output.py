"""Where a rank's words go: to its log, as they are, for as long as the disk takes them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

from ..rundir.records.notes import NoteWriter


def redirect(log: Path) -> None:
    """What this rank and its children print goes to `log`, appended line by line."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def part(shared: Path, log: Path) -> None:
    """What this process prints goes to `log`, as far as it went to `shared`; what its parent reads is the parent's."""
    if shared == log:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    with contextlib.suppress(OSError):
        common = shared.stat()
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        for number in (1, 2):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(number), common):
                    os.dup2(fd, number)
        os.close(fd)


class _Lenient(io.FileIO):
    """A log that can take no more, its disk being full, loses what is printed. It does not end the training that prints."""

    def __init__(self, fd: int, name: str, note: NoteWriter) -> None:
        super().__init__(fd, "w", closefd=False)
        self.name = name
        self._note = note
        self._lost = 0
        """Bytes that the disk has refused since it took any."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError as error:
            if not self._lost:
                said = "what is printed is lost until it can"
                self._note("warning", text=f"the log cannot be written ({error.strerror}): {said}")
            self._lost += memoryview(data).nbytes
            return memoryview(data).nbytes
        if self._lost:
            lost, self._lost = self._lost, 0
            self._note("warning", text=f"the log can be written again: {lost} bytes that were printed are lost")
        return written


def outlive_full_disk(note: NoteWriter) -> None:
    """stdout and stderr are as they were, but for a disk that refuses what they write: that is noted."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        raw = _Lenient(fd, f"<{name}>", note)
        unbuffered = isinstance(old.buffer, io.FileIO)
        new = io.TextIOWrapper(
            raw if unbuffered else io.BufferedWriter(raw),
            encoding=old.encoding,
            errors=old.errors,
            line_buffering=old.line_buffering,
            write_through=old.write_through,
        )
        new.mode = "w"  # type: ignore[misc]
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
