"""The end of a rank that is a fork, as an interpreter ends that was started for the script."""

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

from .reporter import is_ours

_WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def tell(error: BaseException) -> None:
    """As the interpreter tells of it, by the script's own hook if there is one; the frames that it shows are the script's."""
    trace = error.__traceback__
    while trace is not None and is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    if trace is not None:
        error = error.with_traceback(trace)
    sys.excepthook(type(error), error, error.__traceback__)


def end(code: object, by: signal.Signals | None = None) -> NoReturn:
    """This process is gone: `by` a signal, or with the argument of a SystemExit for its status.

    What a script may count on has come before: its threads are done, its exit functions have run, what nothing but its
    main module held is deleted, what it has written is in its files. What is left out is the interpreter's own end. It takes
    four times as long, and libraries whose threads did not come along with the fork may wait for them in their destructors.
    """
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    # First: of a file and its buffer that are deleted together, either may be the first to go.
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
    """What was written is in the files. Those of before the fork are frozen: neither listed, nor the script's."""
    # By their true types: a proxy says that it is what it stands for, and raises if that is gone.
    for thing in [thing for thing in gc.get_objects() if issubclass(type(thing), _WRITERS)] + [sys.stdout, sys.stderr]:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            thing.flush()
