"""error.rank1.json: the exception that ended a rank, as the rank leaves it and the supervisor reads it."""

from __future__ import annotations

import msgspec


class Described(msgspec.Struct, frozen=True):
    """An exception, as it is told from others."""

    type: str
    message: str
    kinds: tuple[str, ...] = ()
    """Its type and those it derives from, nearest first, with their modules unless built in."""
    errno: int | None = None


class Unread(msgspec.Struct, frozen=True):
    """The file that an error is about, and how large that was."""

    path: str
    bytes: int


class ErrorRecord(Described, frozen=True, kw_only=True):
    """What ended a rank, and when, by CLOCK_MONOTONIC and by the wall clock."""

    rank: int
    exit_code: int
    """With which it is about to exit."""
    mono: float
    time: float = 0.0
    because: tuple[Described, ...] = ()
    """What it was explicitly raised from, nearest first."""
    frame: str = ""
    """The innermost of the script's own frames."""
    frames: tuple[str, ...] = ()
    traceback: str = ""
    file: Unread | None = None
    bad_step: int = -1
    data_step: int = -1
