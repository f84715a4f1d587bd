"""The numbers of runs in the text format of Prometheus. Names and units are as its conventions ask: seconds and bytes,
`_total` for what only grows, a label `run`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from supervisor.core.telling.ledger import ledger, lost_steps
from supervisor.core.telling.story import Story
from supervisor.core.words import RunState

Labels = Mapping[str, str]
Value = tuple[Labels, float]
_FAMILIES = {
    "supervise_run_state": ("gauge", "1 for the state that the run is in."),
    "supervise_run_step": ("gauge", "The highest step that the run has done."),
    "supervise_run_planned_steps": ("gauge", "The steps that the program will have done at its end."),
    "supervise_run_step_duration_seconds": ("gauge", "The time of a step: the median of the last looks."),
    "supervise_run_loss": ("gauge", "The last loss that the program has told."),
    "supervise_run_learning_rate": ("gauge", "The learning rate of the last step."),
    "supervise_run_restarts_total": ("counter", "Attempts that were started again."),
    "supervise_run_lost_steps_total": ("counter", "Steps that had to be done again."),
    "supervise_run_time_seconds_total": ("counter", "Where the time went, by the row of the ledger."),
    "supervise_run_goodput_ratio": ("gauge", "The share of the time that went into steps for the first time."),
    "supervise_run_failures_total": ("counter", "Attempts that failed, by cause."),
    "supervise_run_budget_restarts_left": ("gauge", "Restarts that are left in the window."),
    "supervise_run_checkpoint_step": ("gauge", "The step of the newest checkpoint on disk."),
    "supervise_run_checkpoint_age_seconds": ("gauge", "The age of the newest checkpoint on disk."),
    "supervise_run_standby_memory_bytes": ("gauge", "The memory of the group that waits."),
    "supervise_rank_step": ("gauge", "The last step of the rank."),
    "supervise_rank_beat_age_seconds": ("gauge", "Time since the rank was last seen to do something."),
    "supervise_run_last_event_timestamp_seconds": ("gauge", "The time of the run's start or end, in unix time."),
}
Look = tuple[str, Story, Mapping[str, Any]]
"""(name, story, `status --json`) of a run."""


def exposition(runs: Iterable[Look]) -> str:
    """All of `runs`: each family once, with a sample for each run that has it."""
    found: dict[str, list[Value]] = {name: [] for name in _FAMILIES}
    for name, story, now in runs:
        for family, labels, value in _samples(story, now):
            if value is not None and not math.isnan(value):
                found[family].append(({"run": name, **labels}, value))
    return "".join(_family(name, *_FAMILIES[name], values) for name, values in found.items() if values)


def _samples(story: Story, now: Mapping[str, Any]) -> Iterable[tuple[str, Labels, float | None]]:
    at = (story.started or 0.0) + now["wall_s"]
    book = ledger(story, at)
    causes: dict[str, int] = {}
    for attempt in story.failures():
        causes[str(attempt.cause)] = causes.get(str(attempt.cause), 0) + 1
    checkpoint, standby = now["checkpoint"] or {}, now["standby"] or {}
    for state in RunState:
        yield "supervise_run_state", {"state": state.value}, float(now["state"] == state)
    yield "supervise_run_step", {}, now["step"]
    yield "supervise_run_planned_steps", {}, now["total"]
    yield "supervise_run_step_duration_seconds", {}, now["step_ms"] / 1e3 if now["step_ms"] is not None else None
    yield "supervise_run_loss", {}, now["loss"]
    yield "supervise_run_learning_rate", {}, now["lr"]
    yield "supervise_run_restarts_total", {}, now["restarts"]
    yield "supervise_run_lost_steps_total", {}, sum(steps or 0 for steps in lost_steps(story))
    for bucket, seconds in book.seconds.items():
        yield "supervise_run_time_seconds_total", {"row": bucket}, round(seconds, 3)
    yield "supervise_run_goodput_ratio", {}, round(book.goodput, 6)
    for cause, count in sorted(causes.items()):
        yield "supervise_run_failures_total", {"cause": cause}, count
    yield "supervise_run_budget_restarts_left", {}, now["budget"]["left"]
    yield "supervise_run_checkpoint_step", {}, checkpoint.get("step")
    yield "supervise_run_checkpoint_age_seconds", {}, checkpoint.get("age_s")
    yield "supervise_run_standby_memory_bytes", {}, standby.get("pss_bytes")
    for worker in now["workers"]:
        rank = {"rank": str(worker["rank"])}
        yield "supervise_rank_step", rank, worker["step"]
        yield "supervise_rank_beat_age_seconds", rank, worker["beat_age_s"]
    yield "supervise_run_last_event_timestamp_seconds", {}, _unix(now["ended"] or now["started"])


def _unix(iso: object) -> float | None:
    try:
        return datetime.fromisoformat(str(iso).replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _family(name: str, kind: str, meaning: str, values: Sequence[Value]) -> str:
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
    for labels, value in values:
        pairs = ",".join(f'{key}="{_escaped(said)}"' for key, said in labels.items())
        lines.append(f"{name}{{{pairs}}} {float(value)!r}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
