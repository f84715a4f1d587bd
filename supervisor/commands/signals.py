"""Handlers of signals for a while, and what unwinds a command that only looks at a run."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any


class Left(Exception):
    """Somebody wants the terminal for something else."""


def leave(number: int, frame: FrameType | None) -> None:
    """A handler that raises Left."""
    raise Left


@contextlib.contextmanager
def handled(wanted: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Inside, each of the signals has its handler; after it, the one from before."""
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
