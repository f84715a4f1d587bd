"""What a run has to know of Slurm: its time to save, its next try, its batch script.

Seen with Slurm 22.05; sbatch(1), srun(1), slurm.conf(5). A signal of Slurm reaches the supervisor, not the ranks: these
are in sessions of their own. A job is requeued by Slurm itself after a preemption or a lost node, and never after
scancel. After its time limit it is not, unless it exits with one of RequeueExit; so it asks for that itself.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence

from supervisor.process.addresses import numbers

_JOB = "SLURM_JOB_ID"
WARN_S = 120
"""Seconds before the time limit at which Slurm sends SIGUSR1. It may come up to a minute early."""
MARGIN_S = 5.0
"""Of the time between Slurm's TERM and its KILL, for the end of the supervisor itself."""
_LIMIT_S = 10.0


def batch_script(launch: Sequence[str], asked: Sequence[str], name: str) -> str:
    """A script for sbatch that runs the command `launch` once on each node. `asked` are sbatch's options, which are
    stronger than ours. The job ends as the command does: with its exit code."""
    several = nodes_asked(asked) > 1
    ours = [
        f"--job-name={name}",
        *(["--ntasks-per-node=1", "--no-kill"] if several else ["--nodes=1", "--ntasks=1"]),
        "--requeue",
        "--open-mode=append",
        f"--signal=USR1@{WARN_S}",
    ]
    # Without --no-kill, Slurm ends the whole job when one node is lost.
    each = "--nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --no-kill"
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in ours),
            *(f"#SBATCH {option}" for option in _lines(asked)),
            "# srun gives a step one core unless it is told of more.",
            "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}",
            f"exec srun {each if several else '--ntasks=1'} --kill-on-bad-exit=0 {shlex.join(launch)}",
            "",
        ]
    )


def nodes_asked(asked: Sequence[str]) -> int:
    """The most nodes that sbatch's options ask for: --nodes=2, -N 2, -N2, --nodes=2-4."""
    found = 1
    for word, following in zip(asked, [*asked[1:], ""], strict=False):
        value = following if word in ("-N", "--nodes") else None
        if word.startswith("--nodes="):
            value = word.partition("=")[2]
        elif word.startswith("-N") and word != "-N":
            value = word[2:]
        if value is not None:
            found = max(map(int, re.findall(r"\d+", value)), default=1)
    return found


def _lines(asked: Sequence[str]) -> list[str]:
    """The options, each with its value: a word that does not begin with a dash belongs to the one before."""
    lines: list[str] = []
    for word in asked:
        if word.startswith("-") or not lines:
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return lines


def grace(wanted: float, environ: Mapping[str, str]) -> float | None:
    """The time that a last save may take in this job, if that is less than `wanted`: Slurm kills after KillWait."""
    if _JOB not in environ:
        return None
    found = re.search(r"^KillWait\s*=\s*(\d+)", _asked("show", "config") or "", re.M)
    most = max(1.0, float(found[1]) - MARGIN_S) if found else wanted
    return most if most < wanted else None


def requeue(environ: Mapping[str, str]) -> str:
    """The job waits for its next start, with the same number. Returns what happened, in a sentence; "" outside of
    Slurm."""
    job = environ.get(_JOB)
    if job is None:
        return ""
    if _asked("requeue", job) is None:
        return f"Slurm did not put job {job} back into its queue: submit it again, and it goes on"
    return f"job {job} is in Slurm's queue again, and goes on from there"


def addresses_of(node: str) -> list[str]:
    """The addresses at which Slurm itself reaches the node, for a cluster in which its name means nothing elsewhere."""
    found = re.search(r"\bNodeAddr=(\S+)", _asked("show", "node", node) or "")
    return numbers(found[1]) if found else []


def _asked(*words: str) -> str | None:
    """The output of scontrol; None if it is not there, failed, or hangs."""
    try:
        done = subprocess.run(
            ["scontrol", *words], capture_output=True, text=True, timeout=_LIMIT_S, stdin=subprocess.DEVNULL, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
