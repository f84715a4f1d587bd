"""The leaders of a run over several nodes, by number: each has made a file that no other one can make.

    RUN/leaders/0003    made once (O_EXCL), by the third leader; says who that is

Only the holder of the run's lock leads. But a machine that was frozen as a whole, or cut off from the disk, loses its
locks at a file server, and may wake up while somebody else leads. It sees the other one's file then, and ends. What it
still has to tell goes to a file of its own, which no reader takes for the run's.
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime, timezone
from pathlib import Path

from supervisor.process.place import here
from supervisor.run.folder.lock import Holder
from trainer.rundir.files.codec import encode, read
from trainer.rundir.layout import RunDir


class Epoch:
    """One leader's number."""

    def __init__(self, run: RunDir) -> None:
        """It is ours, and later than all others. OSError if the file cannot be made."""
        self._folder, self._over = run.leaders, False
        self._folder.mkdir(mode=0o700, exist_ok=True)
        me = encode({"pid": os.getpid(), **here(), "since": datetime.now(timezone.utc).isoformat()})
        number = _newest(self._folder) + 1
        while not _made(self._folder / f"{number:04d}", me):
            number += 1
        self.number = number
        self.events: Path = run.events_of(number)
        """Where a leader with this number tells what it sees after a later one has begun."""

    def is_over(self) -> bool:
        """Whether a later leader has begun. A disk that cannot be read does not say so."""
        if not self._over:
            with contextlib.suppress(OSError):
                self._over = _newest(self._folder) > self.number
        return self._over

    def successor(self) -> str:
        """Who leads now, in words."""
        with contextlib.suppress(OSError, ValueError):
            who = read(self._folder / f"{_newest(self._folder):04d}", Holder)
            return f"pid {who['pid']} on {who['host']} since {who['since']}" if len(who) > 2 else "another supervisor"
        return "another supervisor"


def _newest(folder: Path) -> int:
    # Each event asks, so it makes no Path of each name.
    names = os.listdir(folder)
    return max((int(name) for name in names if name.isdecimal()), default=0)


def _made(path: Path, text: bytes) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(fd, "wb") as file, contextlib.suppress(OSError):
        # The name is the claim. On a full disk nobody is named.
        file.write(text)
    return True
