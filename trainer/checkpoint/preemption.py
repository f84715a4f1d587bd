"""The request to stop: a signal sets a flag, and nothing else."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopFlag:
    """Set once `number` was received by this process. Outside the main thread signals are left as they are.

    A child forked from here (a DataLoader worker) inherits the handler, and dies of the signal as if it had none.
    """

    def __init__(self, number: signal.Signals) -> None:
        self.is_set = False
        self._number = number
        self._pid = os.getpid()
        self._before: Any = None
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._before = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._pid:
            self.is_set = True
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def close(self) -> None:
        """The signal is handled as before."""
        if self._installed and threading.current_thread() is threading.main_thread():
            # None: the handler before was not installed from Python, and cannot be put back.
            signal.signal(self._number, signal.SIG_DFL if self._before is None else self._before)
            self._installed = False
