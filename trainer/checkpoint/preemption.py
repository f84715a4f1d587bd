"""The request to stop: a signal sets a flag, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_handled: set[signal.Signals] = set()


def _forget() -> None:
    # A forked child (a DataLoader worker) has this handler too. It would not end when its parent tells it to.
    for number in _handled:
        signal.signal(number, signal.SIG_DFL)
    _handled.clear()


os.register_at_fork(after_in_child=_forget)


class StopFlag:
    """Set when this process has received signal `number`. Children that it forks meanwhile die of that signal, as
    without a handler. Outside the main thread nothing is installed."""

    def __init__(self, number: signal.Signals) -> None:
        self.is_set = False
        self._number = number
        self._before: Any = None
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._before = signal.signal(number, self._handle)
            _handled.add(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.is_set = True

    def close(self) -> None:
        """The signal is handled as before."""
        if self._installed and threading.current_thread() is threading.main_thread():
            # None: the old handler was not installed from Python, so it cannot be put back.
            signal.signal(self._number, signal.SIG_DFL if self._before is None else self._before)
            _handled.discard(self._number)
            self._installed = False
