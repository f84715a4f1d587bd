"""What is found in folders of checkpoints after a crash, and which of it may be there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.jobs import holds, write
from tests.support.protocols import Marks
from trainer.checkpoint.disk import store
from trainer.checkpoint.disk.restore import Tiers, restore
from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.group import Ranks
from trainer.gpt.metrics import Metrics
from trainer.rundir.files.durable import DISK


def found_by_restore(folder: Path) -> tuple[Any, list[int]]:
    """(step restored, None, or the name of the error; the steps that were whole before that)."""
    good = [one.step for one in store.listing(folder, store.verify) if one.problem is None]
    try:
        loaded = restore(Tiers(folder), "auto", Ranks(), DISK)
    except CheckpointError as error:
        return type(error).__name__, good
    return loaded.manifest.step if loaded else None, good


def metrics_from(run: Path, step: int) -> list[int]:
    """The steps in metrics.jsonl once a run that resumed at `step` has done one more."""
    metrics = Metrics(run / "metrics.jsonl")
    metrics.resume_at(step)
    metrics.write(step=step + 1)
    metrics.close()
    return [json.loads(line)["step"] for line in metrics.path.read_bytes().splitlines()]


def recovered(folder: Path) -> dict[str, Any]:
    """What a run that starts on `folder` would find and do."""
    bad = [one.step for one in store.listing(folder, store.verify) if one.problem]
    latest = (folder / store.LATEST).is_file(), store.read_latest(folder)
    step, good = found_by_restore(folder)
    return {
        "good": good,
        "bad": bad,
        "restored": step,
        "exact": holds(folder, step) if isinstance(step, int) else True,
        "left": [path.name for path in folder.glob(".step-*")] if folder.is_dir() else [],
        "aside": sorted(str(path.relative_to(folder)) for path in folder.glob("superseded-*/step-????????")),
        "latest": latest[1] is not None or not latest[0],
        "again": write(folder, 9).error is None and holds(folder, 9),
    }


def restored(root: Path) -> None:
    found_by_restore(root / "run" / "checkpoints")


def resumed(root: Path) -> None:
    step, _ = found_by_restore(root / "run" / "checkpoints")
    metrics = Metrics(root / "run" / "metrics.jsonl")
    metrics.resume_at(step)
    metrics.write(step=step + 1)
    os.close(metrics._fd)


def checkpoints_in(root: Path, folder: str = "run/checkpoints") -> dict[str, Any]:
    return recovered(root / folder)


def one_of(*steps: Any, good: int = 0, bad: tuple[int, ...] = ()) -> Callable[[Marks, dict[str, Any]], str | None]:
    """What is restored is one of `steps`, and none before the last that was said to be durable; at least `good` are
    whole."""

    def allowed(marks: Marks, seen: dict[str, Any]) -> str | None:
        durable = max((steps.index(None if mark == "none" else int(mark)) for mark in marks), default=0)
        if seen["restored"] not in steps[durable:] or not seen["exact"]:
            return f"restored {seen['restored']}, not one of {steps[durable:]}"
        if not set(seen["bad"]) <= set(bad) or len(seen["good"]) < good:
            return f"good: {seen['good']}, damaged: {seen['bad']}"
        return None if seen["again"] and seen["latest"] and not seen["left"] else f"after that: {seen}"

    return allowed
