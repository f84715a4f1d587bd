"""The request of a run: its resolved options, and their form in run.json."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from supervisor.core import rules
from supervisor.core.model import Cause, Do, Policy
from supervisor.errors import Refusal
from supervisor.run.origin import origin
from supervisor.run.runs import INODE, SCHEMA, inode
from trainer.rundir.files.codec import encode
from trainer.rundir.files.durable import replace_file
from trainer.rundir.layout import RunDir
from trainer.rundir.machine.shm import is_mark
from trainer.rundir.secrets import Redactor

HANG_OFF = "off"
MOST_RANKS = 4096
LONGEST_KEPT = 24 * 3600.0
"""Seconds."""
Resume = Literal["auto", "never", "must"]
Park = Literal["auto", "restore", "start"]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


@dataclass(frozen=True, slots=True)
class Spec:
    """One run as requested."""

    run: Name
    mark: str
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    module: bool
    nproc: Annotated[int, msgspec.Meta(ge=1, le=MOST_RANKS)]
    cwd: Annotated[str, msgspec.Meta(min_length=1)]
    resume: Resume = "auto"
    resume_args: str = ""
    adapter: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] = "auto"
    """The adapter that tells the program how to resume: auto, off, or an adapter's name."""
    policy: Policy = field(default_factory=Policy)
    standby: bool = True
    park: Park = "auto"
    """Where the standby waits: at the script's first line, or in Checkpointer.restore()."""
    keep_warm: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_KEPT)] = 0.0
    """Seconds for which the fork server stays after the run, for the next run of the same script."""
    spawns: bool = False
    """Whether the script starts its ranks itself. Then it is started as its user would start it."""
    plain_saves: bool = False
    """Whether the script's own saves are written directly to their paths."""
    local_addr: Name | None = None
    """The address of this machine at which the ranks meet. None: the loopback interface."""
    nnodes: Annotated[str, msgspec.Meta(pattern=r"^([0-9]+(:[0-9]+)?)?$")] = ""
    """Nodes that train, N or MIN:MAX, as asked for. Empty: as the engine says."""
    rdzv_endpoint: Name | None = None
    """The node that leads, HOST[:PORT]. None: the engine's first."""
    node_wait: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    lease: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """How long a node may be silent before it is lost, in seconds. None: from the gaps that are seen."""
    local_dir: Name | None = None
    """Each node's own folder. None: in /dev/shm."""
    inject: tuple[str, ...] = ()
    log_restarts: bool = False
    """Whether the script's own W&B runs and TensorBoard folders get restarts, lost steps and goodput."""
    metrics_file: Name | None = None
    """The whole path of a file that holds the numbers of the run, for Prometheus."""
    notify: str = ""
    """The supervise.toml with the [notify] of this run. Empty: nobody wants messages."""
    devices: str = ""
    """CUDA_VISIBLE_DEVICES of the ranks, once a GPU was lost and the run has gone on without it."""
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="milliseconds"))

    @property
    def several(self) -> bool:
        """Whether it is a run over several nodes."""
        return self.nnodes.rpartition(":")[2] not in ("", "0", "1")


BUILT_IN = "_supervise"
"""The private name of the built-in trainer's package."""
_OWN = [f.name for f in dataclasses.fields(Spec) if f.name != "policy"]
_LIMITS = [f.name for f in dataclasses.fields(Policy) if f.name != "stuck_after"]
NAMES = frozenset(_OWN + _LIMITS)
"""The names of all values of a Spec and of its policy, as in options and run.json."""
_FIELDS = (*dataclasses.fields(Spec), *dataclasses.fields(Policy))
DEFAULTS = {f.name: f.default for f in _FIELDS if f.name in NAMES and f.default is not dataclasses.MISSING}
"""The defaults, for `launch` and for a run.json without the field."""


def flat(spec: Spec) -> dict[str, Any]:
    """All values of `spec`, by name."""
    own = {name: getattr(spec, name) for name in _OWN}
    return own | {name: getattr(spec.policy, name) for name in _LIMITS}


def made(values: Mapping[str, Any]) -> Spec:
    """The Spec with `values`, as flat() returns them."""
    return Spec(**{name: values[name] for name in _OWN if name in values}, policy=policy_of(values))


def policy_of(values: Mapping[str, Any]) -> Policy:
    return Policy(**{name: values[name] for name in _LIMITS if name in values})


def resolved(overrides: Mapping[Any, str]) -> dict[Cause, Do]:
    """An action for each cause that a person may decide: from `overrides`, else the default."""
    return {cause: Do(overrides.get(cause, do)) for cause, (do, _) in rules.DEFAULTS.items()}


def shown(spec: Spec, environ: Mapping[str, str] = os.environ) -> Spec:
    """`spec` without the secrets in its command line, so that it may be written down."""
    redactor = Redactor(environ)
    return dataclasses.replace(
        spec, command=tuple(redactor.command(spec.command)), resume_args=_shown_words(spec.resume_args, redactor)
    )


def _shown_words(text: str, redactor: Redactor) -> str:
    """`text`, words as a shell splits them, without the secrets in it."""
    words = shlex.split(text)
    shown = redactor.command(words)
    # Mostly it can stay as it was typed. But what an option hides is known by words alone.
    return redactor.text(text) if shown == list(map(redactor.text, words)) else shlex.join(shown)


def typed(spec: Spec) -> list[str]:
    """The script or module and its arguments as people know them, without secrets."""
    target, *arguments = shown(spec).command
    return ["trainer" if target == BUILT_IN else target, *arguments]


def revealed(spec: Spec, environ: Mapping[str, str] = os.environ) -> Spec:
    """The spec that shown() was given. The secrets come from this environment. Refusal if it does not have them."""
    redactor = Redactor(environ)
    try:
        command = tuple(map(redactor.restore, spec.command))
        return dataclasses.replace(spec, command=command, resume_args=redactor.restore(spec.resume_args))
    except KeyError as error:
        raise Refusal(
            f"run.json keeps no secrets, and {error} is not known here: set it in the environment, "
            "or give the whole command again: supervise launch --run-dir RUN SCRIPT ARGS"
        ) from None


def save(run: RunDir, spec: Spec) -> None:
    """run.json holds `spec`, without its secrets. Until then it held the old one."""
    body = {
        "schema": SCHEMA,
        INODE: inode(run),
        **flat(shown(spec)),
        **origin(None if spec.module else Path(spec.cwd, spec.command[0]), Path(spec.cwd)),
    }
    if spec.policy.hang_timeout == float("inf"):
        # JSON has no infinity that every reader accepts.
        body["hang_timeout"] = HANG_OFF
    try:
        replace_file(run.run_json, encode(body, indent=1))
    except OSError as error:
        raise Refusal(f"{run.run_json} cannot be written: {error.strerror or error}") from None


def restore(body: Mapping[str, Any]) -> Spec:
    """The Spec in run.json's `body`. Refusal if a field is missing or damaged."""
    limits = {name: body[name] for name in _LIMITS if name in body}
    if limits.get("hang_timeout") == HANG_OFF:
        limits["hang_timeout"] = float("inf")
    try:
        # The run may be from another version. Causes that it did not know get the default. Causes that only it knows
        # are left out.
        limits["actions"] = resolved(msgspec.convert(body.get("actions", {}), dict[str, str]))
        spec = msgspec.convert({**body, "policy": limits}, Spec)
        if not is_mark(spec.mark):
            raise ValueError("mark")
        if spec.spawns and spec.nproc != 1:
            raise ValueError("spawns")
        shlex.split(spec.resume_args)
    except ValueError as error:
        raise Refusal(f"run.json is damaged: {error!s:.200}; launch the run again in full") from None
    return spec
