"""The environment that the supervisor gives to every rank, and how a rank reads it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .layout import AttemptDir, RunDir
from .records.rollback import Rollback, decode
from .variables import (
    ATTEMPT,
    CHILDREN,
    FLUSH_SECONDS,
    MARK,
    MTBF_SECONDS,
    PLACE,
    PLAIN_SAVES,
    RESUME,
    ROLLBACK,
    RUN_DIR,
    SUPERVISOR_PID,
)

STACKS_SIGNAL = int(signal.SIGRTMIN) + 5
"""Asks a rank for its stacks. Not SIGUSR1 or 2: Slurm, Lightning and NCCL use those."""


@dataclass(frozen=True, slots=True)
class Supervised:
    """The place of a rank under a supervisor."""

    run: RunDir
    attempt_number: int
    attempt: AttemptDir
    resume: str
    supervisor_pid: int
    rollback: Rollback | None = None
    flush_s: float | None = None
    mtbf_s: float | None = None
    children: str = ""
    """The value of CHILDREN."""
    saving: str = ""
    """A part of the names of the hidden folders in which the program's files are written until they are whole: the
    value of MARK. Empty with PLAIN_SAVES."""


def supervised(environ: Mapping[str, str] = os.environ) -> Supervised | None:
    """The place of this process under its supervisor, or None without one."""
    run_dir, attempt = environ.get(RUN_DIR), environ.get(ATTEMPT)
    if not run_dir or attempt is None or MARK not in environ:
        return None
    place = environ.get(PLACE)
    run = RunDir(Path(run_dir), Path(place) if place else None)
    number = int(attempt)
    return Supervised(
        run=run,
        attempt_number=number,
        attempt=run.attempt(number),
        resume=environ.get(RESUME, "auto"),
        supervisor_pid=int(environ.get(SUPERVISOR_PID, "0")),
        rollback=decode(environ.get(ROLLBACK, "")),
        flush_s=_seconds(environ.get(FLUSH_SECONDS, "")),
        mtbf_s=_seconds(environ.get(MTBF_SECONDS, "")),
        children=environ.get(CHILDREN, ""),
        saving="" if environ.get(PLAIN_SAVES) else environ[MARK],
    )


def _seconds(text: str) -> float | None:
    return float(text) if text else None
