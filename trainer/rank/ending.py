"""Ends a forked rank in the way in which a fresh interpreter ends."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import io
import os
import signal
import sys
import threading
from typing import NoReturn

from .exceptions import without_our_frames

_WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def tell(error: BaseException) -> None:
    """Prints the error as the interpreter does, by the script's own hook if there is one, without our frames."""
    without_our_frames(error)
    sys.excepthook(type(error), error, error.__traceback__)


def end(code: object, by: signal.Signals | None = None) -> NoReturn:
    """Ends this process: `by` a signal, or with `code`, the argument of a SystemExit, as its status.

    Before that comes all that a script may rely on: its threads are done, its exit functions have run, objects that
    only its main module held are deleted, its writes are in the files. Only the interpreter's own end is left out. It
    takes four times as long, and destructors of libraries may wait for threads that the fork does not have.
    """
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    # This comes first: if a file and its buffer are deleted together, either may go first.
    _flush()
    for name in ("__main__", "__mp_main__"):
        sys.modules.pop(name, None)
    gc.collect()
    _flush()
    ctypes.CDLL(None).fflush(None)
    if by is not None:
        signal.signal(by, signal.SIG_DFL)
        os.kill(os.getpid(), by)
    os._exit((code or 0) & 0xFF)


def _flush() -> None:
    """All writes are in the files. Files of the time before the fork are frozen: they are not listed, and not the
    script's."""
    # By the true type: a proxy has the class of its target, and raises if the target is gone.
    for thing in [thing for thing in gc.get_objects() if issubclass(type(thing), _WRITERS)] + [sys.stdout, sys.stderr]:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            thing.flush()
