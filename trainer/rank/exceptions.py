"""An exception as values: its message, its types, its causes, and the file that it is about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..rundir.records.errors import Described, Unread
from .journal.torn import file_of

_MOST = 5
"""The most causes that are recorded."""


def described(error: BaseException) -> Described:
    """The exception as a supervisor needs it: its message, its type, and the base types."""
    kinds = tuple(_kind(kind) for kind in type(error).__mro__[:-1])
    text = str(error)
    # The end of a long message counts too: a DataLoader worker's traceback comes before the error itself.
    message = text if len(text) <= 2000 else f"{text[:1000]} … {text[-1000:]}"
    errno = getattr(error, "errno", None)
    return Described(kinds[0].rpartition(".")[2], message, kinds, errno if type(errno) is int else None)


def unread(error: BaseException) -> Unread | None:
    """The file whose content the error is about, and its size in bytes. None if the error is about no file."""
    # A script's variables may do anything when they are looked at. Its error must go on record all the same.
    with contextlib.suppress(Exception):
        if (path := file_of(error)) is not None:
            return Unread(path, Path(path).stat().st_size)
    return None


def _kind(kind: type) -> str:
    module = kind.__module__
    # The name that people write.
    module = f"trainer{module.removeprefix('_supervise')}" if module.startswith("_supervise.") else module
    return f"{module}.{kind.__qualname__}".removeprefix("builtins.")


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that it was explicitly raised from, nearest first."""
    for _ in range(_MOST):
        if error.__cause__ is None:
            return
        error = error.__cause__
        yield error
