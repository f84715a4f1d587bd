"""The environment that the supervisor gives to every rank, and how a rank reads it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .layout import AttemptDir, RunDir
from .records.rollback import Rollback, decode

MARK = "SUPERVISE_MARK"
"""Carried by every process of a run, whoever its parent is now: <mark of the run>.<attempt>."""
HIDDEN_ARGUMENTS = "SUPERVISE_HIDDEN_ARGUMENTS"
"""The script's arguments that are not written into a release, being secrets: a JSON object, by index. Taken out of a rank's
environment before the script runs."""
RUN_ID = "SUPERVISE_RUN_ID"
RUN_DIR = "SUPERVISE_RUN_DIR"
ATTEMPT = "SUPERVISE_ATTEMPT"
SUPERVISOR_PID = "SUPERVISE_SUPERVISOR_PID"
GRACE = "SUPERVISE_GRACE"
"""Seconds that ranks which were asked to stop have for it."""
CHILDREN = "SUPERVISE_CHILDREN"
"""RANKS: the script starts its ranks itself (--spawns); PERHAPS: it may. Absent where a process that it starts is none."""
RANKS, PERHAPS = "ranks", "perhaps"
LAUNCHERS = re.compile(
    r"TORCHELASTIC_.*|MASTER_ADDR|MASTER_PORT|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE"
    r"|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_RANK|ROLE_NAME|ROLE_WORLD_SIZE|TORCH_NCCL_ASYNC_ERROR_HANDLING"
)
"""What torchrun sets for a rank, and a program does not have that is started by its user."""
PLAIN_SAVES = "SUPERVISE_PLAIN_SAVES"
"""Not empty: the program's own saves are written as it asks, and not beside."""
RESUME = "SUPERVISE_RESUME"
"""auto, never or must: whether this attempt restores a checkpoint."""
RESUME_STEP = "SUPERVISE_RESUME_STEP"
"""The newest step that it may go on from, as of the attempt's launch, or -1: of a checkpoint of ours, or, where the run has
none, the true step of the script's own newest whole save."""
RESUME_FROM = "SUPERVISE_RESUME_FROM"
"""The path of that checkpoint, or of that save: the file that was written last. Empty if there is none."""
ROLLBACK = "SUPERVISE_ROLLBACK"
"""An order to go back (trainer.rundir.records.rollback), or empty."""
FLUSH_SECONDS = "SUPERVISE_FLUSH_SECONDS"
"""How long the run's newest flush took, or empty."""
MTBF_SECONDS = "SUPERVISE_MTBF_SECONDS"
"""The mean time between the run's newest failures, or empty: none yet."""
STORE = "SUPERVISE_STORE"
"""Where the ranks of a group meet in place of the launcher's port, as PORT:FILE; set by the launcher."""

STACKS_SIGNAL = int(signal.SIGRTMIN) + 5
"""Asks a rank for its stacks. Not SIGUSR1 or 2: Slurm, Lightning and NCCL have plans for those."""


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
    """As CHILDREN."""
    saving: str = ""
    """What the names of hidden folders hold in which the program's files are written until they are whole: MARK's
    value; empty with PLAIN_SAVES."""


def supervised(environ: Mapping[str, str] = os.environ) -> Supervised | None:
    """Who supervises this process, or None when nobody does."""
    run_dir, attempt = environ.get(RUN_DIR), environ.get(ATTEMPT)
    if not run_dir or attempt is None or MARK not in environ:
        return None
    run = RunDir(Path(run_dir))
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
