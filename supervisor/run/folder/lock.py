"""One supervisor for each run: a flock on the run's folder, and a note that names the holder."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TypedDict

from filelock import FileLock, Timeout

from supervisor.errors import HeldByAnother, Refusal
from supervisor.process.place import elsewhere, here
from supervisor.reading.local_time import local
from supervisor.run.folder.ownership import vet
from supervisor.run.runs import name_here
from trainer.rundir.files.codec import encode, read
from trainer.rundir.files.durable import replace_file
from trainer.rundir.files.flock import locked
from trainer.rundir.files.untrusted_files import open_file
from trainer.rundir.layout import RunDir

_TIME_LIMIT = 0.5
"""Seconds to try a lock that a supervisor has."""
_LONGEST_LOOK = 30.0
"""Seconds to try a lock that no supervisor has: a query takes it for a moment, to learn whether it is held, and on a
busy machine a moment may be long."""


class Holder(TypedDict, total=False):
    """lock.json: the pid of the holder, its pid namespace (`pids`), and the time when it took the lock."""

    pid: int
    host: str
    boot: str
    pids: str
    since: str


class RunLock:
    """Held from enter to exit, or until the process dies in any way. Only the run's owner can hold it."""

    def __init__(self, run: RunDir, unnamed: bool = False, given: bool = False) -> None:
        """`unnamed`: the lock is taken even if a full disk refuses the note that names the holder. `given`: our parent
        may hold it, and gives it to us."""
        self._run, self._unnamed, self._given = run, unnamed, given
        self._lock = FileLock(run.lock, timeout=_TIME_LIMIT, mode=0o600)

    def __enter__(self) -> RunLock:
        vet(self._run)
        try:
            self._acquire()
        except Timeout:
            raise HeldByAnother(f"{self._run.path} is {describe(self._run)}") from None
        except OSError as error:
            raise Refusal(f"{self._run.lock} cannot be locked: {error}") from None
        me = {"pid": os.getpid(), **here(), "since": datetime.now(timezone.utc).isoformat()}
        try:
            replace_file(self._run.holder, encode(me))
        except OSError as error:
            if self._unnamed and error.errno in (errno.ENOSPC, errno.EDQUOT):
                return self
            self._lock.release()
            raise Refusal(f"{self._run.path} cannot be written: {error.strerror or error}") from None
        return self

    def _acquire(self) -> None:
        """The lock is ours. Timeout: a supervisor has it."""
        until = time.monotonic() + _LONGEST_LOOK
        while True:
            try:
                self._lock.acquire(poll_interval=0.001 if self._given else 0.02)
                return
            except Timeout:
                if self._is_supervised() or time.monotonic() > until:
                    raise

    def _is_supervised(self) -> bool:
        """Whether a supervisor holds the run, for itself: a command that looks at it does so for a moment."""
        who = holder(self._run)
        if not is_held(self._run) or (self._given and who.get("pid") == os.getppid()):
            return False
        return bool(elsewhere(who, here())) or Path(f"/proc/{who.get('pid')}").exists()

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """It is free, also before the end of the block."""
        self._lock.release()


def is_held(run: RunDir) -> bool:
    """Whether a living supervisor holds the run."""
    try:
        fd = open_file(run.lock)
    except OSError:
        return False
    with locked(fd, wait=False, shared=True) as free:
        return not free


@contextlib.contextmanager
def claimed(run: RunDir) -> Iterator[bool]:
    """Whether the run's lock was free; then we hold it inside. A run without a lock file is free. A query that has the
    lock for a moment is waited for."""
    until = time.monotonic() + _LONGEST_LOOK
    while True:
        try:
            fd = open_file(run.lock, os.O_RDWR)
        except FileNotFoundError:
            yield True
            return
        except OSError:
            yield False
            return
        with locked(fd, wait=False) as ours:
            if ours or is_held(run) or time.monotonic() > until:
                yield ours
                return
        time.sleep(0.02)


def holder(run: RunDir) -> Holder:
    """The last holder of the lock; empty if it cannot be read."""
    try:
        return read(run.holder, Holder)
    except (OSError, ValueError):
        return {}


def describe(run: RunDir) -> str:
    who = holder(run)
    if not who:
        return "held by another supervisor; stop it first, or use another --run-dir"
    return (
        f"held by another supervisor: pid {who.get('pid')} on {who.get('host')} since {local(str(who.get('since')))}; "
        f"stop it with: supervise stop {name_here(run)}, or use another --run-dir"
    )
