"""The output of a rank goes to its log, unchanged, as long as the disk takes it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

from .progress import progress


def redirect(log: Path) -> None:
    """The output of this rank and its children is appended to `log`, line by line."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def move(head: Path, log: Path) -> None:
    """Output of this process that went to `head` now goes to `log`, which begins with it: as a rule, both are names of
    one file."""
    with contextlib.suppress(OSError):
        if log.exists() and os.path.samestat(head.stat(), log.stat()):
            return
        said = head.read_bytes()
        part(head, log)
        with log.open("ab") as file:
            file.write(said)


def part(shared: Path, log: Path) -> None:
    """Output of this process that went to `shared` now goes to `log`. Output that its parent reads stays with the
    parent."""
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
    """On a full disk the log loses the printed text. A print then does not end the training."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, "w", closefd=False)
        self.name = name
        self._lost = 0
        """Bytes that the disk has refused since its last accepted write."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError as error:
            if not self._lost:
                said = "printed text is lost until it can be written"
                progress().note("warning", text=f"the log cannot be written ({error.strerror}): {said}")
            self._lost += memoryview(data).nbytes
            return memoryview(data).nbytes
        if self._lost:
            lost, self._lost = self._lost, 0
            progress().note("warning", text=f"the log can be written again: {lost} printed bytes are lost")
        return written


def outlive_full_disk() -> None:
    """stdout and stderr work as before. If the disk refuses their output, that is noted and raises no error."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        raw = _Lenient(fd, f"<{name}>")
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
