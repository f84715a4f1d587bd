"""The standard streams of a command: each is there, and none of them decides how the command ends."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any


def all_there() -> None:
    """A stream that was closed (`2>&-`) leads nowhere. So it is not None, and no file of ours gets its number."""
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        if getattr(sys, name) is None:
            # The lowest free number is that of the stream.
            number = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            # A program that we start has it, too.
            os.set_inheritable(number, True)
            about: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
            setattr(sys, name, os.fdopen(number, mode, **about))


class _Stdout(io.FileIO):
    """The rest goes nowhere after a write that failed: Python would try it once more at the exit, and complain. A
    reader that is gone (`| head`) is no error."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            if isinstance(error, BrokenPipeError):
                return super().write(data)
            raise


class _Stderr(io.FileIO):
    """What cannot be written here can be said nowhere else."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def let_the_readers_go() -> None:
    """From now on the readers of sys.stdout and sys.stderr may go away, if these were the interpreter's own."""
    if _is_own(sys.stdout, sys.__stdout__):
        sys.stdout = _through(_Stdout, sys.stdout)
    if _is_own(sys.stderr, sys.__stderr__):
        sys.stderr = _through(_Stderr, sys.stderr)


def _is_own(stream: Any, first: Any) -> bool:
    return stream is first and type(stream) is io.TextIOWrapper


def _through(kind: type[io.FileIO], own: Any) -> io.TextIOWrapper:
    own.flush()
    # It closes nothing: the descriptor stays that of the interpreter.
    buffer = io.BufferedWriter(kind(own.fileno(), "wb", closefd=False))
    about: dict[str, Any] = {"encoding": own.encoding, "errors": own.errors, "line_buffering": own.line_buffering}
    return io.TextIOWrapper(buffer, **about)
