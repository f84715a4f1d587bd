"""An exception as values: its message, its types, its causes, and the file that it is about."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ..rundir.codes import Phase
from ..rundir.records.errors import Described, Unread
from .journal.torn import file_of

_MOST = 5
"""The most causes that are recorded."""
_OURS = tuple(str(Path(__file__).parents[1] / name) + os.sep for name in ("rank", "adapters", "callbacks"))
"""Folders of what stands between a script and what it calls. Their frames are nothing to the reader of a traceback."""


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


class Failing(Protocol):
    def failed(self, error: BaseException, exit_code: int) -> None: ...
    def phase(self, phase: Phase) -> None: ...


@contextlib.contextmanager
def record_exception(reporter: Failing) -> Iterator[None]:
    """Records an exception that leaves the block, with its time, before the process begins to exit.

    Interpreter and CUDA teardown can take seconds, and by then every other rank has failed too.
    """
    try:
        yield
    except SystemExit as error:
        # A bare status needs no record.
        if isinstance(error.code, str):
            reporter.failed(error, 1)
        reporter.phase(Phase.TEARDOWN)
        raise
    except KeyboardInterrupt as error:
        # The interpreter ends in the same way: by the signal.
        reporter.failed(error, -signal.SIGINT)
        raise
    except BaseException as error:
        # An error of ours (no usable checkpoint, another model's) has the status that keeps a supervisor from retrying.
        code = getattr(error, "exit_code", 1)
        reporter.failed(error, code if isinstance(code, int) else 1)
        if code in (1, None) or not isinstance(code, int):
            raise
        traceback.print_exception(without_our_frames(error))
        raise SystemExit(code) from error
    else:
        reporter.phase(Phase.TEARDOWN)


def is_ours(filename: str) -> bool:
    return filename.startswith(("<frozen", *_OURS)) or Path(filename).name in ("start.py", "runpy.py")


def without_our_frames(error: BaseException) -> BaseException:
    """The error. The tracebacks of it, and of all that it came from, are now as without us. One that has no other
    frames is left as it is: that error is ours."""
    for each in _family(error):
        frames = []
        trace = each.__traceback__
        while trace is not None:
            frames.append(trace)
            trace = trace.tb_next
        kept = [frame for frame in frames if not is_ours(frame.tb_frame.f_code.co_filename)]
        if kept and len(kept) < len(frames):
            below: types.TracebackType | None = None
            for frame in reversed(kept):
                below = types.TracebackType(below, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
            each.__traceback__ = below
    return error


def _family(error: BaseException) -> Iterator[BaseException]:
    """The error, the errors that it came from, explicitly or not, and those that it is a group of."""
    seen, left = set[int](), [error]
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            left += [one for one in (each.__cause__, each.__context__) if one is not None]
            group = getattr(each, "exceptions", None)
            left += [one for one in group if isinstance(one, BaseException)] if isinstance(group, tuple) else []
