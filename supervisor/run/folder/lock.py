"""One supervisor for each run: a flock on the run's folder, and a note that names the holder."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import TypedDict

from filelock import FileLock, Timeout

from supervisor.errors import HeldByAnother, Refusal
from supervisor.process.place import here
from supervisor.reading.local_time import local
from supervisor.run.folder.ownership import vet
from supervisor.run.runs import name_here
from trainer.rundir.files.codec import encode, read
from trainer.rundir.files.durable import replace_file
from trainer.rundir.files.flock import locked
from trainer.rundir.files.untrusted_files import open_file
from trainer.rundir.layout import RunDir

_TIME_LIMIT = 0.5
"""Seconds to try. A query takes the lock for a moment, to learn whether it is held."""


class Holder(TypedDict, total=False):
    """lock.json: the pid of the holder, its pid namespace (`pids`), and the time when it took the lock."""

    pid: int
    host: str
    boot: str
    pids: str
    since: str


class RunLock:
    """Held from enter to exit, or until the process dies in any way. Only the run's owner can hold it."""

    def __init__(self, run: RunDir, unnamed: bool = False, every: float = 0.02) -> None:
        """`unnamed`: the lock is taken even if a full disk refuses the note that names the holder. A lock that is held
        is tried again `every` so many seconds."""
        self._run, self._every = run, every
        self._unnamed = unnamed
        self._lock = FileLock(run.lock, timeout=_TIME_LIMIT, mode=0o600)

    def __enter__(self) -> RunLock:
        vet(self._run)
        try:
            self._lock.acquire(poll_interval=self._every)
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
    """Whether the run's lock was free; then we hold it inside. A run without a lock file is free."""
    try:
        fd = open_file(run.lock, os.O_RDWR)
    except FileNotFoundError:
        yield True
    except OSError:
        yield False
    else:
        with locked(fd, wait=False) as ours:
            yield ours


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
