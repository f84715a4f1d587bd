"""What a fork has from the processes before it, the fork server and the launcher, is undone: it is as an interpreter is
that was started for the script. What is left of them is the modules that they have imported.

A test names every difference that remains, and why (tests/trainer/rank/test_forked.py).
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from .. import torch_patches
from . import descriptors, fork_environment

_ENGINES = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""The signals that torch's engine handles, which therefore nobody ignores who was started by it."""
_of_modules: set[int] = set()
"""Open files of what was imported in order to be inherited."""


def imported(load: Callable[[], Any]) -> Any:
    """What `load()` returns. The files that it has opened stay open in the forks of this process."""
    before = descriptors.opened()
    try:
        return load()
    finally:
        _of_modules.update(descriptors.opened() - before)


def leave(pipes: bool = False) -> None:
    """This process, a fork, has no open files of the process that forked it but the standard ones, and its pipes, if
    `pipes` are to stay."""
    descriptors.close_all_but(_of_modules, pipes)


def undo() -> None:
    """All of it, in a rank that has just been forked."""
    os.setsid()
    # Whatever of the launcher's is garbage by now must not close, once it is collected, what has got its numbers.
    gc.freeze()
    # But for pipes: at every fork libuv, which serves torch's store in the launcher, closes two of its own by their
    # numbers.
    leave(pipes=True)
    fork_environment.leave()
    torch_patches.count_gpus_here()
    torch_patches.leave_the_engine()
    _settle_signals()
    _settle_threads()
    _settle_stdin()
    # Where temporary files go is found out when it is asked for, and the script may set TMPDIR before it asks.
    tempfile.tempdir = None
    # Python reseeds its own generator after a fork; these would be the same in every rank.
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()


def _settle_signals() -> None:
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if number in _ENGINES or (callable(handler) and handler is not signal.default_int_handler):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _settle_threads() -> None:
    """Python up to 3.12 takes the kernel's number of the main thread for that of the process that forked."""
    with contextlib.suppress(AttributeError):
        threading.main_thread()._set_native_id()  # type: ignore[attr-defined]


def _settle_stdin() -> None:
    """sys.stdin is about the file that is there now: it may be sought in, and so on."""
    old = sys.stdin
    if old is None:
        return
    raw = io.FileIO(0, "r", closefd=False)
    raw.name = "<stdin>"
    new = io.TextIOWrapper(
        io.BufferedReader(raw),
        encoding=old.encoding,
        errors=old.errors,
        newline="\n",
        line_buffering=os.isatty(0),
        write_through=old.write_through,  # type: ignore[union-attr]
    )
    new.mode = "r"  # type: ignore[misc]
    sys.stdin = sys.__stdin__ = new  # type: ignore[misc]
