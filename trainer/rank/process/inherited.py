"""Undoes what a fork inherits from the fork server and the launcher, so that it is like an interpreter started for the
script. Only their imported modules stay.

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
from collections.abc import Callable, Collection
from typing import Any

from .. import torch_patches
from . import descriptors, fork_environment

_ENGINES = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""The signals that torch's engine handles. So a process that it starts does not ignore them."""
_of_modules: set[int] = set()
"""The open files of modules that were imported to be inherited."""


def imported(load: Callable[[], Any]) -> Any:
    """Returns `load()`. The files that it opens stay open in the forks of this process."""
    before = descriptors.opened()
    try:
        return load()
    finally:
        _of_modules.update(descriptors.opened() - before)


def leave(pipes: bool = False, but: Collection[int] = ()) -> None:
    """This fork closes the open files of its parent, except the standard ones and those in `but`, and except pipes if
    `pipes` is set."""
    descriptors.close_all_but({*_of_modules, *but}, pipes)


def undo() -> None:
    """Undoes all of it, in a rank that was just forked."""
    os.setsid()
    # Garbage of the launcher, when collected, must not close other files that have got its numbers.
    gc.freeze()
    # Pipes stay: libuv, which serves torch's store in the launcher, closes two of its own by their numbers at every
    # fork.
    leave(pipes=True)
    fork_environment.leave()
    torch_patches.count_gpus_here()
    torch_patches.leave_the_engine()
    _settle_signals()
    _settle_threads()
    _settle_stdin()
    # tempfile looks for its folder at the first call, and the script may set TMPDIR before that.
    tempfile.tempdir = None
    # Python reseeds its own generator after a fork. These generators would be the same in every rank.
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
    """Corrects the native id of the main thread: Python up to 3.12 keeps the id of the process that forked."""
    with contextlib.suppress(AttributeError):
        threading.main_thread()._set_native_id()  # type: ignore[attr-defined]


def _settle_stdin() -> None:
    """sys.stdin fits the file that is open now: whether it can be sought in, and so on."""
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
