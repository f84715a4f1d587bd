"""What a run was asked to be: the options as resolved, and how run.json keeps them."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from supervisor.core.model import Cause, Do, Policy
from supervisor.core.rules import DEFAULTS
from supervisor.errors import Refusal
from supervisor.run.runs import INODE, SCHEMA, inode
from trainer.rundir.files.durable import replace_file
from trainer.rundir.layout import RunDir
from trainer.rundir.machine.shm import is_mark
from trainer.rundir.secrets import Redactor

HANG_OFF = "off"
MOST_RANKS = 4096


@dataclass(frozen=True, slots=True)
class Spec:
    """One run as requested. Durations in seconds; `hang_timeout` None is `auto`, infinity is `off`."""

    run: str
    mark: str
    command: tuple[str, ...]
    module: bool
    nproc: int
    cwd: str
    resume: str = "auto"
    resume_args: str = ""
    max_restarts: int = 3
    window: float = 3600.0
    no_progress_limit: int = 3
    backoff: tuple[float, float] = (1.0, 300.0)
    grace: float = 45.0
    hang_timeout: float | None = None
    startup_timeout: float = 1800.0
    standby: bool = True
    spawns: bool = False
    """The script starts its ranks itself, and is started as by its user."""
    local_addr: str | None = None
    """The address of this machine that the ranks meet at; None: the loopback interface."""
    inject: tuple[str, ...] = ()
    actions: Mapping[str, str] = field(default_factory=dict)
    """What to do about each cause that a person may decide, by name."""
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="milliseconds"))

    @property
    def policy(self) -> Policy:
        return Policy(
            max_restarts=self.max_restarts,
            window=self.window,
            no_progress_limit=self.no_progress_limit,
            backoff_min=self.backoff[0],
            backoff_max=self.backoff[1],
            grace=self.grace,
            hang_timeout=self.hang_timeout,
            startup_timeout=self.startup_timeout,
            actions={Cause(cause): Do(action) for cause, action in self.actions.items()},
        )


def resolved(overrides: Mapping[str, str]) -> dict[str, str]:
    """An action for each cause that a person may decide: the default where `overrides` has none."""
    return {cause.value: overrides.get(cause.value, do.value) for cause, (do, _) in DEFAULTS.items()}


def shown(spec: Spec, environ: Mapping[str, str] = os.environ) -> Spec:
    """`spec` as it may be written down: without the secrets in its command line."""
    redactor = Redactor(environ)
    return dataclasses.replace(
        spec, command=tuple(redactor.command(spec.command)), resume_args=redactor.text(spec.resume_args)
    )


def revealed(spec: Spec, environ: Mapping[str, str] = os.environ) -> Spec:
    """What shown() was given, as far as this environment has the secrets; Refusal if it does not."""
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
    """run.json holds `spec`, without its secrets; it was the old one until then."""
    body = dataclasses.asdict(shown(spec))
    # JSON has no infinity that every reader takes.
    body["hang_timeout"] = HANG_OFF if spec.hang_timeout == float("inf") else spec.hang_timeout
    body = {
        "schema": SCHEMA,
        INODE: inode(run),
        **body,
        "versions": {"python": platform.python_version(), "executable": sys.executable},
    }
    try:
        replace_file(run.run_json, json.dumps(body, indent=1).encode())
    except OSError as error:
        raise Refusal(f"{run.run_json} cannot be written: {error.strerror or error}") from None


def restore(body: dict[str, Any]) -> Spec:
    """The Spec that run.json's `body` keeps; Refusal if a field is missing or of another type."""
    known = {f.name for f in dataclasses.fields(Spec)}
    values = {key: value for key, value in body.items() if key in known}
    try:
        values["command"] = tuple(values["command"])
        values["backoff"] = tuple(float(edge) for edge in values["backoff"])
        values["inject"] = tuple(values.get("inject", ()))
        if values.get("hang_timeout") == HANG_OFF:
            values["hang_timeout"] = float("inf")
        # Of an earlier version's run, perhaps: causes that it did not know are dealt with as by default.
        values["actions"] = resolved(values.get("actions", {}))
        spec = Spec(**values)
        _ = spec.policy
        for name, (kind, fits) in _FIELDS.items():
            value = getattr(spec, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or not fits(value):
                raise ValueError(name)
        if spec.spawns and spec.nproc != 1:
            raise ValueError("spawns")
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise Refusal(f"run.json lacks or garbles {error!s:.200}; launch the run again in full") from None
    return spec


_Fits = Callable[[Any], bool]
_FIELDS: dict[str, tuple[Any, _Fits]] = {
    "run": (str, lambda text: 0 < len(text) < 256),
    "mark": (str, is_mark),
    "command": (tuple, lambda parts: bool(parts) and all(isinstance(part, str) for part in parts)),
    "module": (bool, lambda _: True),
    "nproc": (int, lambda count: 0 < count <= MOST_RANKS),
    "cwd": (str, bool),
    "resume": (str, lambda mode: mode in ("auto", "never", "must")),
    "resume_args": (str, lambda text: shlex.split(text) is not None),
    "max_restarts": (int, lambda count: 0 <= count < 1 << 31),
    "no_progress_limit": (int, lambda count: 0 < count < 1 << 31),
    "backoff": (tuple, lambda edges: len(edges) == 2 and all(edge >= 0 for edge in edges)),
    "window": (int | float, lambda seconds: seconds >= 0),
    "grace": (int | float, lambda seconds: seconds >= 0),
    "startup_timeout": (int | float, lambda seconds: seconds >= 0),
    "hang_timeout": (int | float | None, lambda seconds: seconds is None or seconds >= 0),
    "standby": (bool, lambda _: True),
    "spawns": (bool, lambda _: True),
    "local_addr": (str | None, lambda text: text is None or 0 < len(text) < 256),
    "inject": (tuple, lambda specs: all(isinstance(spec, str) for spec in specs)),
    "created": (str, lambda _: True),
}
"""What each field must be: run.json may be damaged, or anybody's."""
