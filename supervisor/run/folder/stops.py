"""Requests to stop a run: signals to the supervisor, and the stop file in the run's folder."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.core.model import StopKind
from trainer.rundir.files.untrusted_files import open_file


class HandedOver(Exception):
    """The run is not over. Its ranks go on, and the next supervisor takes them over."""


@dataclass
class Stops:
    """The requests by signals and the stop file. A second request means now."""

    kind: StopKind | None = None
    now: bool = False
    warned: bool = False
    """The request came by SIGUSR1: the time of a batch job will soon be over."""
    leave: bool = False
    """The run is to go on under another supervisor, as soon as that can take over the ranks."""

    def ask(self, kind: StopKind, now: bool = False) -> None:
        self.now = self.now or now or self.kind is not None
        self.kind = self.kind or kind

    def read(self, path: Path) -> None:
        """Takes the request from the stop file at `path`, and removes the file."""
        if (asked := _taken(path)) is not None:
            self.ask(StopKind.USER, now=asked == b"now")


def retried(path: Path) -> int | None:
    """The attempt that somebody wants to begin now, by the file at `path`, which is removed."""
    asked = _taken(path) or b""
    return int(asked) if asked.isdigit() else None


def looked_for(path: Path) -> tuple[str, float] | None:
    """Who wants a look at the ranks, and for how many seconds (0: once), by the file at `path`, which is removed."""
    name, _, seconds = (_taken(path) or b"").decode("ascii", "replace").partition(" ")
    return (name, float(seconds)) if name.isalnum() and seconds.isdigit() else None


def _taken(path: Path) -> bytes | None:
    """The request in the file at `path`, which is removed. None if there is none, or if it is not from the run's
    owner."""
    with contextlib.suppress(OSError):
        fd = open_file(path)
        with os.fdopen(fd, "rb") as file:
            asked, owner = file.read(16).strip(), os.fstat(fd).st_uid
        path.unlink()
        # The folder is private. Even if its owner opens it to others, they may not steer the run.
        return asked if owner == os.geteuid() else None
    return None


def _heard(stops: Stops, kind: StopKind, number: int) -> None:
    # A batch system may send its warning more than once; that is no wish for an end without a save.
    if number == signal.SIGUSR1:
        stops.warned = True
        if stops.kind is not None:
            return
    stops.ask(kind)


@contextlib.contextmanager
def signals(stops: Stops) -> Iterator[int]:
    """SIGINT asks for a user's stop. SIGTERM, SIGHUP and SIGUSR1 ask for a preemption's. Yields a descriptor that is
    readable after each signal."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    kinds = {signal.SIGINT: StopKind.USER, signal.SIGTERM: StopKind.PREEMPTION, signal.SIGHUP: StopKind.PREEMPTION}
    kinds[signal.SIGUSR1] = StopKind.PREEMPTION
    handlers: dict[Any, Any] = {number: signal.getsignal(number) for number in kinds}
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number, kind in kinds.items():
        # A detached run ignores the hang-up of the terminal, and so does a run under nohup. Whoever has SIGUSR1 ignored
        # sends it for something else; its ranks have it ignored, too.
        if not (number in (signal.SIGHUP, signal.SIGUSR1) and handlers[number] == signal.SIG_IGN):
            signal.signal(number, lambda number, _frame, kind=kind: _heard(stops, kind, number))  # type: ignore[misc]
    try:
        yield read
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)
