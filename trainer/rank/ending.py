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
import time
import traceback
import types
from collections import deque
from collections.abc import Collection
from typing import Any, NoReturn

from ..rundir.machine.proc import content
from .exceptions import without_our_frames

_WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
_CODE = (types.ModuleType, types.FunctionType, type)
_TICK, _LOOKS = 0.05, 20
"""Seconds between two looks, and the looks that must find a lock taken: the interpreter's own end waits for a second,
too. One look may find a thread that waits for its turn in the interpreter."""
_WRITE_S = 60.0
"""Seconds that the end waits for a disk or a pipe that takes no bytes."""
_FUTEX = {"x86_64": b"202", "aarch64": b"98"}.get(os.uname().machine, b"")
"""The number of the system call in which a thread waits for a lock."""


def tell(error: BaseException) -> None:
    """Prints the error as the interpreter does, by the script's own hook if there is one, without our frames."""
    without_our_frames(error)
    sys.excepthook(type(error), error, error.__traceback__)


def end(code: object, by: signal.Signals | None = None) -> NoReturn:
    """Ends this process: `by` a signal, or with `code`, the argument of a SystemExit, as its status.

    Before that comes all that a script may rely on: its threads are done, its exit functions have run, objects that
    only its main module held are deleted, its writes are in the files, but for a file in which a daemon thread is
    stuck. Only the interpreter's own end is left out. It takes four times as long, and destructors of libraries may
    wait for threads that the fork does not have.
    """
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    # This comes first: if a file and its buffer are deleted together, either may go first.
    stuck = _flush()
    for name in ("__main__", "__mp_main__"):
        sys.modules.pop(name, None)
    gc.collect()
    _empty_main()
    _flush(stuck)
    ctypes.CDLL(None).fflush(None)
    if by is not None:
        signal.signal(by, signal.SIG_DFL)
        os.kill(os.getpid(), by)
    os._exit((code or 0) & 0xFF)


def _empty_main() -> None:
    """The objects of the main module are deleted, also if something else holds a function of it (a signal handler, a
    hook) and with that all its names. Streams that know no flush are closed so: gzip's. Not if a daemon thread runs
    such a function: it would find None instead of them."""
    tops = sys._current_frames().values()
    running = {id(frame.f_globals) for top in tops for frame, _ in traceback.walk_stack(top)}
    left = [each for each in gc.get_objects() if type(each) is dict and each.get("__builtins__") is not None]
    for names in left:
        name = names.get("__name__")
        if type(name) is str and name == "__main__" and id(names) not in running:
            # Destructors may need modules, functions and classes. By the true type, as in _flush().
            names.update({key: None for key, value in list(names.items()) if not issubclass(type(value), _CODE)})
    gc.collect()


def _flush(stuck: Collection[Any] = ()) -> list[Any]:
    """All writes are in the files, but for those of the returned ones, which are stuck, and of those that were `stuck`
    before. Files of the time before the fork are frozen: they are not listed, and not the script's."""
    known = {*map(id, stuck)}
    # By the true type: a proxy has the class of its target, and raises if the target is gone.
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), _WRITERS)] + [sys.stdout, sys.stderr]
    left = deque(thing for thing in found if id(thing) not in known)
    flushers, alive = list[_Flusher](), list[_Flusher]()
    before, looks, until = 0, 0, time.monotonic() + _WRITE_S
    while left or alive:
        if left and (not alive or len(left) == before):
            # Those that are there wait. The next one takes the rest.
            flushers.append(_Flusher(left))
            flushers[-1].begin()
        if left:
            before, until = len(left), time.monotonic() + _WRITE_S
        else:
            looks = looks + 1 if all(flusher.waits_for_lock() for flusher in alive) else 0
            if looks > _LOOKS or time.monotonic() >= until:
                break
        alive = [flusher for flusher in flushers if flusher.is_alive()]
        if alive:
            alive[-1].join(_TICK)
    return [flusher.at for flusher in alive if flusher.is_alive()]


class _Flusher(threading.Thread):
    """Flushes what is `left`, each one in turn. A file in which a thread of the script waits in a write() has its lock
    taken for ever, and so has one in which a thread did when this process was forked. So the end waits for this thread
    instead, and not longer than it likes."""

    def __init__(self, left: deque[Any]) -> None:
        super().__init__(daemon=True)
        self._left = left
        self.at: Any = None
        """What it has begun with."""

    def begin(self) -> None:
        """It runs, or it is done, if there can be no more threads."""
        try:
            self.start()
        except RuntimeError:
            self.run()

    def run(self) -> None:
        while True:
            try:
                self.at = self._left.popleft()
            except IndexError:
                return
            with contextlib.suppress(OSError, ValueError, AttributeError):
                self.at.flush()

    def waits_for_lock(self) -> bool:
        """Whether it waits for another thread, and not for a disk. False if the kernel does not tell."""
        with contextlib.suppress(OSError, IndexError):
            return content(f"/proc/self/task/{self.native_id}/syscall").split()[0] == _FUTEX
        return False
