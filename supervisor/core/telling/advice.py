"""Sentences for people about a run as a whole: its budget, and what to do if its script saves nothing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supervisor.core.size import counted, human_seconds

NOTHING_SAVED = (
    "this script has saved nothing to go on from: each restart begins at step 0, and --no-progress-limit ends the run",
    "five lines save every step, and resume: docs/checkpoints.md (Hugging Face, Lightning: docs/callbacks.md)",
    "if the script can save and resume by options of its own: give them to it; those for a restart with --resume-args",
    "if it is meant to begin again each time: --no-progress-limit 1000",
)
"""The fact, and the ways to change it."""


def budget(known: Mapping[str, Any]) -> str:
    """The budget of `status --json`, in the words of the reason that ends a run."""
    window = human_seconds(known["window_s"])
    used, most = known["used"], known["max_restarts"]
    barren, limit = known["no_progress"], known["no_progress_limit"]
    return (
        f"{used} of {counted(most, 'restart')} used in the last {window}; "
        f"{barren} of {counted(limit, 'attempt')} in a row left no new checkpoint"
    )


def go_on(name: str, several: bool) -> str:
    """How a run is taken up again. On `several` nodes no node can do that alone."""
    return "its launch command again, on each node" if several else f"supervise resume {name}"
