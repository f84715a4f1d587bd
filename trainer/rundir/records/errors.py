"""error.rank1.json: the exception that ended a rank. The rank writes it, and the supervisor reads it."""

from __future__ import annotations

import msgspec


class Described(msgspec.Struct, frozen=True):
    """The fields that tell an exception from others."""

    type: str
    message: str
    kinds: tuple[str, ...] = ()
    """Its type and the base types, nearest first, with their modules unless built in."""
    errno: int | None = None


class Unread(msgspec.Struct, frozen=True):
    """The file that an error is about, and its size."""

    path: str
    bytes: int


class ErrorRecord(Described, frozen=True, kw_only=True):
    """The exception that ended a rank, and its time by CLOCK_MONOTONIC and by the wall clock."""

    rank: int
    exit_code: int
    """The exit code that the rank is about to return."""
    mono: float
    time: float = 0.0
    because: tuple[Described, ...] = ()
    """The exceptions that it was raised from explicitly, nearest first."""
    frame: str = ""
    """The innermost frame of the script itself."""
    frames: tuple[str, ...] = ()
    traceback: str = ""
    file: Unread | None = None
    bad_step: int = -1
    data_step: int = -1
