"""A request to the supervisor of a run, as a file in the run's own folder. Writing it needs the owner's rights, and it
cannot hit a wrong pid, as a signal could."""

from __future__ import annotations

import errno
import time
from pathlib import Path

from supervisor.errors import Refusal
from trainer.rundir.files.durable import replace_file
from trainer.rundir.layout import RunDir

_READ = 5.0
"""Seconds in which a supervisor reads its stop file."""


def ask_to_stop(run: RunDir, now: bool) -> None:
    """The run is asked to stop, `now` or after a last checkpoint. On a full disk, an empty file asks, and a second one
    means now."""
    try:
        _write(run.stop, b"now" if now else b"ask")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise Refusal(f"{run.stop} cannot be written: {error.strerror or error}") from None
        for _ in range(2 if now else 1):
            run.stop.touch(0o600)
            until = time.monotonic() + _READ
            while run.stop.exists() and time.monotonic() < until:
                time.sleep(0.02)


def ask_to_look(run: RunDir, ask: str, seconds: float) -> None:
    """The supervisor of a run over several nodes is asked for a look at all ranks, once or for some `seconds`. `ask` is
    a name for it, of at most 8 letters and digits."""
    try:
        _write(run.look, f"{ask} {min(round(seconds), 999_999)}".encode())
    except OSError as error:
        raise Refusal(f"{run.look} cannot be written: {error.strerror or error}") from None


def ask_to_retry(run: RunDir, attempt: int) -> None:
    """If the run waits before `attempt`, it begins it now."""
    try:
        _write(run.retry, str(attempt).encode())
    except OSError as error:
        raise Refusal(f"{run.retry} cannot be written: {error.strerror or error}") from None


def _write(path: Path, asked: bytes) -> None:
    """OSError if it cannot be written."""
    try:
        replace_file(path, asked)
    except FileNotFoundError:
        # From another machine than the supervisor's: that cannot see that we live, and may have swept our half-written
        # file away when an attempt ended in this moment. It does not do so twice in a row.
        replace_file(path, asked)
