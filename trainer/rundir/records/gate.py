"""The gate at which a worker group waits, its rendezvous done, until the supervisor makes an attempt of it.

A group is a folder `standby/0007/` of the run:

    gate           a FIFO; the supervisor holds its write end open: as long as it is open, the group waits
    rank0.ready    rank 0 waits at the gate; holds its pid
    launcher       the launcher's pid and when it started, so that no other process is ever taken for it
    release.json   what it is let go with, written before the gate is opened
    launcher.json  how the launcher ended, unless it was killed
    launcher.log

The write end closes when the supervisor opens the gate, and when it dies, however it dies: then there is no
release.json, and who waits goes away. What was released trains on, and these files are how the next supervisor of the
run recognises it. They are about living processes, so none is synced: a power cut ends what they tell of.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..files.codec import encode, read
from ..machine.proc import stat


class Release(msgspec.Struct, frozen=True):
    """release.json: the attempt that a group becomes, the script's arguments, and the attempt's part of the
    environment."""

    attempt: int
    env: dict[str, str]
    arguments: list[str]
    nproc: int = 0
    cwd: str = ""
    kind: str = ""
    edits: list[tuple[int, int, list[str]]] = []
    """(index, words taken out, words put in) of `arguments`, the last one first: how this attempt is told to go on."""


class Launcher(msgspec.Struct):
    """launcher: its pid, and when it started, in the kernel's ticks."""

    pid: int
    started: int | None


class Failure(msgspec.Struct):
    """A rank that did not end with 0: its exit code, or minus the signal."""

    rank: int
    pid: int
    exit_code: int
    mono: float


class Report(msgspec.Struct):
    """launcher.json: how the launcher ended, whoever its parent is."""

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
    def launcher_log(self) -> Path:
        return self.path / "launcher.log"

    @property
    def launcher(self) -> Path:
        return self.path / "launcher"

    @property
    def launcher_report(self) -> Path:
        return self.path / "launcher.json"

    def ready(self, rank: int) -> Path:
        return self.path / f"rank{rank}.ready"

    def close(self) -> int:
        """The gate is there and shut; returns the fd that keeps it so. OSError where FIFOs cannot be made."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self.path.mkdir(mode=0o700)
        os.mkfifo(self.fifo, 0o600)
        # Read and write, or the open would wait for a reader.
        return os.open(self.fifo, os.O_RDWR | os.O_CLOEXEC)

    def open(self, fd: int, body: Release) -> None:
        """Everybody who waits, and who comes later, goes on with `body`."""
        self._put(self.release, body)
        os.close(fd)

    def enter(self) -> None:
        """This process is the group's launcher, for everybody to see."""
        with contextlib.suppress(OSError):
            me = stat(os.getpid())
            self._put(self.launcher, Launcher(os.getpid(), me and me.started))

    def report(self, exit_code: int, failures: list[Failure]) -> None:
        """How the launcher ends is known, whoever its parent is."""
        with contextlib.suppress(OSError):
            self._put(self.launcher_report, Report(exit_code, failures, time.monotonic()))

    def _put(self, path: Path, body: msgspec.Struct) -> None:
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(encode(body))
        temporary.rename(path)

    def wait(self, rank: int) -> Release | None:
        """What the supervisor released this rank with; None if it died instead."""
        # Opened before we say that we are ready, and not blocking: with no writer left, there is nothing to wait for.
        fd = os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._come(rank)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        while os.read(fd, 64):
            pass
        os.close(fd)
        return self.released()

    def _come(self, rank: int) -> None:
        """This rank waits at the gate, for everybody to see; on a full disk nobody sees which process it is."""
        try:
            self.ready(rank).write_text(str(os.getpid()))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def released(self) -> Release | None:
        """What is in release.json; None if there is none, ValueError if it is not a release."""
        try:
            return read(self.release, Release, unique=True)
        except FileNotFoundError:
            return None
        except ValueError as damage:
            raise ValueError(f"{self.release} is not a release: {damage}") from None
