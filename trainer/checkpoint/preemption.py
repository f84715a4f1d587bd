"""The request to stop: a signal sets the flags of all that wait for it, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any
from weakref import WeakSet

_flags: dict[int, WeakSet[StopFlag]] = {}
"""Those that are not closed, by the number of a signal that had a handler of ours."""
_before: dict[int, list[Any]] = {}
"""The handlers that ours has replaced, the newest last: somebody else may have come between, who calls ours."""


def _forget() -> None:
    # A forked child (a DataLoader worker) has this handler too. It would not end when its parent tells it to.
    for number in _flags:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_DFL)
    _flags.clear()


os.register_at_fork(after_in_child=_forget)


def _handle(number: int, frame: FrameType | None) -> None:
    flags = list(_flags.get(number, ()))
    for flag in flags:
        flag.is_set = True
    if not flags:  # nobody has closed the last one, or somebody has put this handler back
        _put_back(number)
        os.kill(os.getpid(), number)


def _put_back(number: int) -> None:
    before = _before[number].pop() if _before.get(number) else None
    # None: it was not installed from Python and cannot be put back, or all have been.
    signal.signal(number, signal.SIG_DFL if before is None else before)


class StopFlag:
    """Set when this process has received signal `number`; so are all others of this signal. Children that it forks
    meanwhile die of that signal, as without a handler. Outside the main thread nothing is installed."""

    def __init__(self, number: signal.Signals) -> None:
        self.is_set = False
        self._flags: WeakSet[StopFlag] = WeakSet()
        self._number = number
        if threading.current_thread() is threading.main_thread():
            self._flags = _flags.setdefault(number, WeakSet())
            self._flags.add(self)
            if signal.getsignal(number) is not _handle:  # it is the first one, or somebody has taken the signal
                _before.setdefault(number, []).append(signal.signal(number, _handle))

    def close(self) -> None:
        """It is not set any more. After the last one the signal is handled as before."""
        if self not in self._flags:
            return
        self._flags.discard(self)
        if not self._flags and threading.current_thread() is threading.main_thread():
            _put_back(self._number)
