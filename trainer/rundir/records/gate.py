"""The gate at which a worker group waits after its rendezvous, until the supervisor turns it into an attempt.

A group is a folder `standby/0007/` of the run:

    gate           a FIFO; the group waits as long as the supervisor holds its write end open
    ahead.json     the Release that is expected: the ranks run their script with it, up to Checkpointer.restore()
    rank0.ready    rank 0 has come to the gate; holds its pid
    rank0.parked   rank 0 waits in restore(), see parking.Parked
    rank0.unfit    why rank 0 cannot wait there
    rank0.log      what rank 0 has printed before its release: the head of the attempt's log
    launcher       the launcher's pid and start time, so that no other process is ever taken for it
    release.json   the Release, written before the gate is opened
    launcher.json  how the launcher ended, unless it was killed
    over           of a group over several nodes: every rank has ended, so the launcher that serves their store may end
    launcher.log

The write end closes when the supervisor opens the gate. It also closes when the supervisor dies, by any cause: then
there is no release.json, and the waiting processes exit. A released group trains on, and the next supervisor of the run
recognises it by these files. They describe living processes, so none is synced: a power cut ends those processes, too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..files.codec import encode, read
from ..files.durable import replace_soon
from ..machine.proc import stat

_IDLE = (1.0, 5.0)
"""Seconds between two calls of a function that a waiting rank calls: at first, and at most."""


class Release(msgspec.Struct, frozen=True):
    """release.json: the attempt that the group becomes, the script's arguments, and the attempt's part of the
    environment."""

    attempt: int
    env: dict[str, str]
    arguments: list[str]
    nproc: int = 0
    cwd: str = ""
    kind: str = ""
    edits: list[tuple[int, int, list[str]]] = []
    """(index, words taken out, words put in) of `arguments`, the last one first. They tell this attempt to resume."""


class Launcher(msgspec.Struct):
    """launcher: the launcher's pid, and its start time in the kernel's ticks."""

    pid: int
    started: int | None


class Failure(msgspec.Struct):
    """A rank that did not end with 0: its exit code, or minus the signal."""

    rank: int
    pid: int
    exit_code: int
    mono: float


class Report(msgspec.Struct):
    """launcher.json: the end of the launcher, whatever its parent is."""

    exit_code: int
    failures: list[Failure]
    mono: float


@dataclass(frozen=True, slots=True)
class Gate:
    """The folder of one group."""

    path: Path

    @property
    def fifo(self) -> Path:
        return self.path / "gate"

    @property
    def release(self) -> Path:
        return self.path / "release.json"

    @property
    def ahead(self) -> Path:
        return self.path / "ahead.json"

    @property
    def launcher_log(self) -> Path:
        return self.path / "launcher.log"

    @property
    def launcher(self) -> Path:
        return self.path / "launcher"

    @property
    def launcher_report(self) -> Path:
        return self.path / "launcher.json"

    @property
    def over(self) -> Path:
        return self.path / "over"

    def ready(self, rank: int) -> Path:
        return self.path / f"rank{rank}.ready"

    def parked(self, rank: int) -> Path:
        return self.path / f"rank{rank}.parked"

    def unfit(self, rank: int) -> Path:
        return self.path / f"rank{rank}.unfit"

    def rank_log(self, rank: int) -> Path:
        return self.path / f"rank{rank}.log"

    @property
    def traces(self) -> str:
        """What the names of the ranks' pipes of torch's flight recorder begin with, as long as the group waits."""
        return str(self.path / "nccl_trace_rank_")

    def close(self, ahead: Release | None = None) -> int:
        """Makes the gate, shut. Returns the fd that keeps it shut. With `ahead`, the ranks wait in restore(). OSError
        where FIFOs cannot be made."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self.path.mkdir(mode=0o700)
        if ahead is not None:
            self.put(self.ahead, ahead)
        os.mkfifo(self.fifo, 0o600)
        # Read and write: a write-only open would wait for a reader.
        return os.open(self.fifo, os.O_RDWR | os.O_CLOEXEC)

    def open(self, fd: int, body: Release) -> None:
        """Releases all processes that wait, and those that come later, with `body`."""
        self.put(self.release, body)
        os.close(fd)

    def enter(self) -> None:
        """Records for all readers that this process is the launcher of the group."""
        with contextlib.suppress(OSError):
            me = stat(os.getpid())
            self.put(self.launcher, Launcher(os.getpid(), me and me.started))

    def report(self, exit_code: int, failures: list[Failure]) -> None:
        """Records how the launcher ends, whatever its parent is."""
        with contextlib.suppress(OSError):
            self.put(self.launcher_report, Report(exit_code, failures, time.monotonic()))

    def put(self, path: Path, body: msgspec.Struct) -> None:
        """Readers of `path`, a file of the group, find `body` or what was there before."""
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(encode(body))
        temporary.rename(path)

    def wait(self, rank: int) -> Release | None:
        """The Release of this rank by the supervisor. None if the supervisor died instead."""
        # Opened before we report ready, and not blocking: with no writer left, there is nothing to wait for.
        fd = self._entered()
        self.come(rank)
        return self._passed(fd)

    def wait_again(self, idle: Callable[[], object] | None = None) -> Release | None:
        """Like wait(), for a rank that has come before. `idle` is called from time to time."""
        fd, pause = self._entered(), _IDLE[0]
        while idle is not None and _is_shut(fd):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(pause * 1000):
                idle()
                pause = min(2 * pause, _IDLE[1])
        return self._passed(fd)

    def _entered(self) -> int:
        return os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def _passed(self, fd: int) -> Release | None:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        while os.read(fd, 64):
            pass
        os.close(fd)
        return self.released()

    def come(self, rank: int) -> None:
        """Records for all readers that this rank has come to the gate, and its pid at the same moment. On a full disk
        nobody sees its pid."""
        try:
            replace_soon(self.ready(rank), str(os.getpid()).encode())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            with contextlib.suppress(OSError):
                self.ready(rank).touch()

    def released(self) -> Release | None:
        """The content of release.json. None if there is no such file, ValueError if it is not a release."""
        return self._read(self.release)

    def expected(self) -> Release | None:
        """The content of ahead.json, as released()."""
        return self._read(self.ahead)

    def _read(self, path: Path) -> Release | None:
        try:
            return read(path, Release, unique=True)
        except FileNotFoundError:
            return None
        except ValueError as damage:
            raise ValueError(f"{path} is not a release: {damage}") from None


def _is_shut(fd: int) -> bool:
    """Whether a supervisor holds the write end. poll() alone does not tell if there never was one since `fd` was
    opened."""
    try:
        return bool(os.read(fd, 64))
    except BlockingIOError:
        return True
