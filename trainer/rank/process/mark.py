"""The mark of this process, as others see it: every process of a run is found by it.

The kernel shows a process' environment from the place where it put it at the start, and a fork has its parent's. So a
fork that does another work than its parent writes its own mark there.
"""

from __future__ import annotations

import ctypes
import re

from ...rundir.machine.proc import environment
from ...rundir.variables import MARK

_PLACE = re.compile(rb"(?:\A|\0)" + MARK.encode() + rb"=([^\0]*)\0")


def room() -> int:
    """The length of a mark here. 0 if it is not where the kernel has put it."""
    start, end = _place()
    return end - start


def show(mark: str) -> None:
    """Others see `mark`, cut or filled up to room(), as the mark of this process and of its later forks. OSError if
    there is no room."""
    start, end = _place()
    if start == end:
        raise OSError("its environment is not where it was")
    ctypes.memmove(start, mark.encode()[: end - start].ljust(end - start, b"-"), end - start)


def _place() -> tuple[int, int]:
    """The addresses of the mark."""
    start, end = environment()
    text = ctypes.string_at(start, end - start) if 0 < start < end else b""
    found = _PLACE.search(text)
    return (start + found.start(1), start + found.end(1)) if found is not None else (0, 0)
