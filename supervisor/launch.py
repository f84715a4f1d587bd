"""From a Spec and an attempt's number to a running launcher: argv, environment, process."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import trainer
from supervisor.spec import Spec
from trainer.rundir import environment as names
from trainer.rundir.beats import create_beats
from trainer.rundir.layout import RunDir, committed_steps, step_name

_TRAINER = Path(trainer.__file__).parent

# What an outer launcher left in our environment would be obeyed by torchrun (PET_*) or believed by the ranks.
_STALE = re.compile(
    r"^(PET_.*|TORCHELASTIC_.*|MASTER_ADDR|MASTER_PORT|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE"
    r"|GROUP_RANK|GROUP_WORLD_SIZE|ROLE_RANK|ROLE_NAME|ROLE_WORLD_SIZE|SUPERVISE_.*)$"
)


def environment(spec: Spec, run: RunDir, attempt: int, resume: str, outer: Mapping[str, str]) -> dict[str, str]:
    """The environment of the attempt's launcher, and so of its ranks: `outer` without what is stale, with ours."""
    env = {key: value for key, value in outer.items() if not _STALE.match(key)}
    steps = committed_steps(run.checkpoints)
    newest = steps[-1] if steps and resume != "never" else -1
    env |= {
        names.MARK: f"{spec.mark}.{attempt}",
        names.RUN_ID: spec.run,
        names.RUN_DIR: str(run.path),
        names.ATTEMPT: str(attempt),
        names.SUPERVISOR_PID: str(os.getpid()),
        names.RESUME: resume,
        names.RESUME_STEP: str(newest),
        names.RESUME_FROM: str(run.checkpoints / step_name(newest)) if newest >= 0 else "",
        "PYTHONUNBUFFERED": outer.get("PYTHONUNBUFFERED", "1"),
    }
    # One run in the tracker over all attempts. A user's own choice stands.
    env.setdefault("WANDB_RUN_ID", spec.run)
    env.setdefault("WANDB_RESUME", "allow")
    if spec.nproc > 1:
        # torchrun's own default, set here so that it does not print a paragraph about it in every attempt.
        env.setdefault("OMP_NUM_THREADS", "1")
    return env


def arguments(spec: Spec, run: RunDir, attempt: int, relaunch: bool) -> list[str]:
    """The launcher's argv: torchrun as a fresh engine with its own rendezvous, running the worker bootstrap."""
    folder = run.attempt(attempt)
    script = list(spec.command)
    if relaunch and spec.resume_args:
        script += shlex.split(spec.resume_args)
    return [
        sys.executable,
        str(_TRAINER / "launcher.py"),
        str(folder.launcher_report),
        "--nnodes=1",
        f"--nproc-per-node={spec.nproc}",
        "--max-restarts=0",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        f"--rdzv-id={spec.mark}-{attempt}",
        f"--log-dir={folder.path / 'torchelastic'}",
        "--",
        str(_TRAINER / "worker.py"),
        *(["-m"] if spec.module else []),
        *script,
    ]


def start(spec: Spec, run: RunDir, attempt: int, resume: str, relaunch: bool, outer: Mapping[str, str]) -> int:
    """The attempt's folder exists and its launcher runs, in a session of its own; returns its pid.

    OSError if the disk or the process table is full.
    """
    folder = run.attempt(attempt)
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_beats(folder.beats, spec.nproc)
    with folder.launcher_log.open("ab") as log:
        process = subprocess.Popen(
            arguments(spec, run, attempt, relaunch),
            env=environment(spec, run, attempt, resume, outer),
            cwd=spec.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    # The supervisor reaps every child in one place; Popen must not wait for this one, nor complain that nobody did.
    process.returncode = 0
    return process.pid
