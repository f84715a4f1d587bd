"""From a Spec to a start: the environments, torchrun's flags, the script's arguments, and a cold launcher."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.core.model import Rollback
from supervisor.group.seat import Seat
from supervisor.process import loopback
from supervisor.run.briefing import Briefing
from supervisor.run.own_saves import Journals, newest_whole
from supervisor.run.spec import Spec
from trainer.checkpoint.disk.store import attempt_of
from trainer.rundir import variables as names
from trainer.rundir.files.codec import encode
from trainer.rundir.layout import RunDir, committed_steps, step_name
from trainer.rundir.programs import STARTUP, program
from trainer.rundir.records import rollback as rollbacks
from trainer.rundir.records.gate import Gate, Release
from trainer.rundir.records.told import encoded
from trainer.rundir.secrets import Redactor

# An outer launcher may have left these in our environment. torchrun would obey PET_*, and the ranks would believe the
# others.
_STALE = re.compile(r"PET_.*|SUPERVISE_.*|" + names.LAUNCHERS.pattern)
_USERS_OWN = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
"""torchrun sets a default for this variable, but the user's value is never stale."""


def environment(spec: Spec, run: RunDir, outer: Mapping[str, str]) -> dict[str, str]:
    """The environment of all processes of the run. It is `outer` without stale variables, plus the variables that are
    the same in all attempts."""
    env = {key: value for key, value in outer.items() if key == _USERS_OWN or not _STALE.fullmatch(key)}
    env |= {
        names.MARK: f"{spec.mark}.group",
        names.RUN_ID: spec.run,
        names.RUN_DIR: str(run.path),
        names.SUPERVISOR_PID: str(os.getpid()),
        names.GRACE: str(spec.policy.grace),
    }
    arguments = _arguments(spec, relaunch=True)
    written = Redactor(outer).command(arguments)
    hidden = {i: own for i, (own, safe) in enumerate(zip(arguments, written, strict=True)) if own != safe}
    if run.place is not None:
        env[names.PLACE] = str(run.place)
    if spec.devices:
        env["CUDA_VISIBLE_DEVICES"] = spec.devices
    if spec.plain_saves:
        env[names.PLAIN_SAVES] = "1"
    if hidden:
        env[names.HIDDEN_ARGUMENTS] = encode(hidden).decode()
    # All attempts are one run in the tracker. The user's own choice has priority.
    env.setdefault("WANDB_RUN_ID", spec.run)
    env.setdefault("WANDB_RESUME", "allow")
    over_network = spec.several and spec.local_addr is not None
    if interface := loopback.interface_of(str(spec.local_addr)) if over_network else loopback.chosen():
        # Otherwise gloo, NCCL and torch's rpc listen on the address of the host's name, and check no identity.
        for library in ("GLOO", "NCCL", "TP"):
            env.setdefault(f"{library}_SOCKET_IFNAME", interface)
    if spec.nproc > 1:
        # torchrun's own default. It is set here so that torchrun does not print a paragraph about it in every attempt.
        env.setdefault("OMP_NUM_THREADS", "1")
    return env


@dataclass(frozen=True, slots=True)
class Order:
    """The order for one attempt."""

    attempt: int
    resume: str = "auto"
    relaunch: bool = True
    """Whether the script also gets the arguments for a resume."""
    rollback: Rollback | None = None
    flush_s: float | None = None
    """Seconds that the run's newest flush took."""
    mtbf_s: float | None = None
    """The mean time between the run's newest failures, in seconds."""
    briefing: Briefing = field(default_factory=Briefing)
    """Tells the program how to resume."""
    leaving: Mapping[int, int] = field(default_factory=dict)
    """Processes of the last attempt that still hold memory of a GPU: pid and start time."""
    journals: Journals | None = None
    """Those of the run, if somebody keeps them."""


def release(spec: Spec, run: RunDir, order: Order, kind: str, outer: Mapping[str, str] = os.environ) -> Release:
    """The release of a group: the attempt's part of the environment, the script and its arguments, without secrets."""
    back, fresh = order.rollback, order.resume == "never"
    rollback = rollbacks.Rollback(back.attempt, back.before, back.skip_to) if back and not fresh else None
    newest, path = (-1, "") if fresh else _resume_from(order.journals or Journals(run), rollback)
    env = {
        names.MARK: f"{spec.mark}.{order.attempt}",
        names.ATTEMPT: str(order.attempt),
        names.RESUME: order.resume,
        names.RESUME_STEP: str(newest),
        names.RESUME_FROM: path,
        names.ROLLBACK: rollback.encode() if rollback else "",
        names.TOLD: encoded(order.briefing.told),
        names.LEAVING: " ".join(f"{pid}:{started}" for pid, started in order.leaving.items()),
        names.FLUSH_SECONDS: "" if order.flush_s is None else f"{order.flush_s:.6f}",
        names.MTBF_SECONDS: "" if order.mtbf_s is None else f"{order.mtbf_s:.6f}",
    }
    if not spec.spawns:
        # What torchrun's agent would say: programs take 0 for a fresh job, and remove what an old one has left.
        env[names.RESTARTS] = "0" if fresh else str(order.attempt)
        env[names.MOST_RESTARTS] = str(spec.policy.max_restarts)
    if spec.nproc == 1 and not spec.several:
        env |= _of_children(spec, outer)
    arguments = Redactor(outer).command(_arguments(spec, order.relaunch))
    edits = [(index, count, Redactor(outer).command(words)) for index, count, words in order.briefing.edits]
    return Release(order.attempt, env, arguments, spec.nproc, spec.cwd, kind, edits)


def _of_children(spec: Spec, outer: Mapping[str, str]) -> dict[str, str]:
    """The variables for a script whose children may be ranks. With them the children find our hooks. A script that
    surely starts its own ranks also keeps the user's launcher variables, as it would without a launcher."""
    paths = [str(STARTUP), *filter(None, [outer.get("PYTHONPATH")])]
    env = {"PYTHONPATH": os.pathsep.join(paths), names.CHILDREN: names.RANKS if spec.spawns else names.PERHAPS}
    if spec.spawns and "TORCHELASTIC_RUN_ID" not in outer:
        env |= {key: value for key, value in outer.items() if names.LAUNCHERS.fullmatch(key)}
    return env


def _arguments(spec: Spec, relaunch: bool) -> list[str]:
    more = shlex.split(spec.resume_args) if relaunch else []
    return [*(["-m"] if spec.module else []), *spec.command, *more]


def is_as_asked(spec: Spec, released: Release, outer: Mapping[str, str] = os.environ) -> bool:
    """Whether a group was `released` as `spec` asks: with the same script, arguments, folder and ranks."""
    asked = [Redactor(outer).command(_arguments(spec, relaunch)) for relaunch in (False, True)]
    return (released.nproc, released.cwd) == (spec.nproc, spec.cwd) and released.arguments in asked


def _resume_from(journals: Journals, rollback: rollbacks.Rollback | None) -> tuple[int, str]:
    """(step, path) of the newest checkpoint that the attempt may resume from. For a script without checkpoints of ours,
    it is the script's own newest whole save. The step is -1 if there is none, or if it is not known."""
    checkpoints = journals.run.checkpoints
    newest = _newest(checkpoints, rollback)
    if newest >= 0:
        return newest, str(checkpoints / step_name(newest))
    own = newest_whole(journals)
    return (own.step, own.path) if own is not None else (-1, "")


def _newest(checkpoints: Path, rollback: rollbacks.Rollback | None) -> int:
    """The newest committed step that the attempt may resume from, or -1."""
    for step in reversed(committed_steps(checkpoints)):
        if rollback is None or step < rollback.before:
            return step
        if not rollback.covers(attempt_of(checkpoints / step_name(step)), step):
            return step
    return -1


def flags(spec: Spec, gate: Gate, seat: Seat) -> list[str]:
    """torchrun's flags: a fresh engine with our own rendezvous, which knows all members beforehand."""
    several = len(seat.sizes) > 1
    return [
        f"--nnodes={len(seat.sizes)}",
        f"--nproc-per-node={seat.nproc}",
        "--max-restarts=0",
        "--rdzv-backend=supervise",
        # On one node nobody uses it. But without it torchrun warns.
        f"--rdzv-endpoint={seat.host}:{seat.port}" if several else "--rdzv-endpoint=localhost:0",
        *([f"--rdzv-conf=node={seat.node},sizes={'.'.join(map(str, seat.sizes))}"] if several else []),
        f"--rdzv-id={spec.mark}-{gate.path.name}",
        *([f"--local-addr={spec.local_addr}"] if spec.local_addr else []),
        # No folder. Ranks have their own logs, and torch would make the run's folder again after a move.
        f"--log-dir={os.devnull}",
    ]


def shown(spec: Spec, outer: Mapping[str, str] = os.environ) -> list[str]:
    """The script and its arguments as `ps` may show them: in their longest form, without secrets."""
    return Redactor(outer).command(_arguments(spec, relaunch=True))


def stdin() -> int:
    """The stdin for subprocess.Popen. As under torchrun, a script reads the stdin of this process."""
    # If this process has no stdin, another file may have its number.
    return subprocess.DEVNULL if sys.__stdin__ is None else 0


def start_cold(spec: Spec, gate: Gate, env: Mapping[str, str], seat: Seat) -> int:
    """The pid of a new launcher in its own session. Its ranks are fresh interpreters and will wait at `gate`.

    OSError if the disk or the process table is full.
    """
    with gate.launcher_log.open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-u",
                *program("rank.engine.launcher"),
                str(gate.path),
                *flags(spec, gate, seat),
                "--",
                *shown(spec),
            ],
            env=dict(env),
            cwd=spec.cwd,
            stdin=stdin(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    # The supervisor reaps every child in one place. So Popen must not wait for this child, nor warn that nobody did.
    process.returncode = 0
    return process.pid
