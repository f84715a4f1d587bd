"""The checkpoints that a command asks for: their place, and whether they are good."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from supervisor.core.size import human_bytes
from supervisor.errors import Refusal
from supervisor.reading.plain import plain
from supervisor.run.runs import find
from trainer.checkpoint.disk import store
from trainer.checkpoint.disk.store import Listed
from trainer.checkpoint.errors import CheckpointError
from trainer.rundir.layout import RunDir, committed_steps, step_name, step_of
from trainer.rundir.programs import program

FLUSH = "checkpoint.disk.flush"
"""Our program that flushes."""
KEEP_ALL = 1 << 30
"""The number of checkpoints to keep if the run's own number is not known. A pruned checkpoint does not come back."""


def flush_command(segment: Path, run: RunDir, step: int | None, keep: int) -> list[str]:
    """The command that makes the snapshot of `step` (None: the newest) one of the run's checkpoints. `keep` of them
    stay."""
    return [sys.executable, *program(FLUSH), *flush_arguments(segment, run, step, keep)]


def flush_arguments(segment: Path, run: RunDir, step: int | None, keep: int) -> list[str]:
    """The arguments of FLUSH, for the same."""
    spelled = "newest" if step is None else str(step)
    return [str(segment), str(run.checkpoints), "--step", spelled, "--keep", str(keep), "--seal", str(run.metrics)]


def folder_of(name: str | None) -> tuple[RunDir | None, Path]:
    """The run with that name, and its folder of checkpoints. The run is None if the name is a mere folder of
    checkpoints."""
    if name and Path(name).is_dir() and committed_steps(Path(name)):
        return None, Path(name)
    run = find(name).run
    return run, run.checkpoints


def one_of(name: str, run: str | None) -> tuple[Path, Path]:
    """The checkpoint `name`, a path or a step of `run`, and the metrics of its run. Refusal if there is none."""
    path = Path(name)
    if not name.isdecimal():
        if step_of(path.absolute().name) is None or not path.is_dir():
            raise Refusal(f"{name} is no checkpoint: give a step, or the path of a folder step-...")
        return path.absolute(), RunDir(path.absolute().parent.parent).metrics
    here, folder = folder_of(run)
    step = steps_of(folder, int(name))[0]
    return (folder / step_name(step)).absolute(), (here or RunDir(folder.parent)).metrics


def steps_of(folder: Path, step: int | None) -> list[int]:
    steps = committed_steps(folder)
    if step is None:
        return steps
    if step not in steps:
        there = " ".join(map(str, steps[-8:])) or "none"
        raise Refusal(f"no checkpoint of step {step} in {folder}; there are: {there}")
    return [step]


def verified(folder: Path, steps: list[int]) -> Iterator[Listed]:
    """Reads each of the checkpoints. One that was pruned meanwhile is left out."""
    for step in steps:
        path = folder / step_name(step)
        try:
            yield Listed(step, path, store.verify(path), None)
        except CheckpointError as error:
            if path.is_dir():
                yield Listed(step, path, None, str(error))


def to_export(folder: Path, step: int | None) -> Path:
    if step is not None:
        return folder / step_name(steps_of(folder, step)[0])
    good = store.newest_good(folder)
    if good is None:
        raise Refusal(f"no good checkpoint in {folder}; look at: supervise ckpt verify")
    return good.path


def described(one: Listed) -> dict[str, Any]:
    body: dict[str, Any] = {"step": one.step, "path": str(one.path), "ok": one.problem is None, "problem": one.problem}
    names = ("bytes", "created", "world_size", "save_seconds", "attempt")
    return {**body, **{name: getattr(one.manifest, name, None) for name in names}}


def size_of(one: Listed) -> str:
    return human_bytes(one.manifest.bytes) if one.manifest else "-"


def ranks_of(one: Listed) -> object:
    return one.manifest.world_size if one.manifest else "-"


def age_of(one: Listed) -> str:
    try:
        created = datetime.fromisoformat(one.manifest.created.replace("Z", "+00:00")) if one.manifest else None
    except ValueError:
        created = None
    if created is None:
        return "-"
    seconds = max(0.0, time.time() - created.timestamp())
    unit, size = next((u for u in (("d", 86400), ("h", 3600), ("m", 60)) if seconds >= u[1]), ("s", 1))
    return f"{int(seconds // size)}{unit}"


def state_of(one: Listed, latest: int | None) -> str:
    return plain(f"BAD  {one.problem}") if one.problem else "ok, latest" if one.step == latest else "ok"
