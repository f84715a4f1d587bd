"""A program in a session of its own: it does not depend on the terminal of whoever started it."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

READY = b"1"
"""What the program writes to its descriptor once it is ready."""


def start_in_own_session(
    program: Path, arguments: Sequence[str], told: bytes, log: BinaryIO, seconds: float
) -> tuple[subprocess.Popen[bytes], bool]:
    """The process that runs `program`, and whether it has said within `seconds` that it is ready: it may have ended
    instead. Its last argument, after `arguments`, is the descriptor to say it at. It has `told` on its standard input,
    for secrets must not stand among the arguments; what it prints goes to `log`. OSError if it cannot be started."""
    read, write = os.pipe()
    with os.fdopen(read, "rb", 0) as ready:
        try:
            child = subprocess.Popen(
                [sys.executable, str(program), *arguments, str(write)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[write],
            )
        finally:
            os.close(write)
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError), child.stdin:
            child.stdin.write(told)
        return child, bool(select.select([ready], [], [], seconds)[0]) and ready.read(1) == READY
