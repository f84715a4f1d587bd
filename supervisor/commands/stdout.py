"""The standard output of a command whose reader may go away (`| head`)."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any


class Pipe(io.FileIO):
    """The rest goes nowhere once the reader is gone. So the command ends with its own exit code."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            return super().write(data)


def let_the_reader_go() -> None:
    """From now on, sys.stdout is such a pipe, if it was the interpreter's own."""
    own = sys.stdout
    if own is sys.__stdout__ and type(own) is io.TextIOWrapper:
        own.flush()
        # It closes nothing: the descriptor stays that of the interpreter.
        buffer = io.BufferedWriter(Pipe(own.fileno(), "wb", closefd=False))
        about: dict[str, Any] = {"encoding": own.encoding, "errors": own.errors, "line_buffering": own.line_buffering}
        sys.stdout = io.TextIOWrapper(buffer, **about)
