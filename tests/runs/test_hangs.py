"""Real hangs: each kind is found, the odd rank and its place are named, the stacks are kept, and the run goes on."""

from __future__ import annotations

import os

import pytest

from tests.support.supervised import ROOT, Run

SCRIPT = ROOT / "benchmarks" / "scripts" / "hanging.py"


@pytest.mark.parametrize(
    ("limit", "kinds", "at_most"),
    [
        # Known by evidence, without a limit.
        (
            "auto",
            {
                "stop": "stopped (state T)",
                "lock": "locked (hanging.py:",
                "beside": "locked (hanging.py:",
                "skip": "hanging.py:",
            },
            10.0,
        ),
        # From outside these could be a slow step.
        (
            "1500ms",
            {
                "gil": "hold_gil (hanging.py:",
                "loop": "loop (hanging.py:",
                "fifo": "read_fifo (hanging.py:",
                "worker": "stuck_item (hanging.py:",
            },
            # Of silence only that part counts in which a rank has a CPU. Without a limit a minute would be the least.
            45.0,
        ),
    ],
)
def test_hangs_are_found_and_named(run: Run, limit: str, kinds: dict[str, str], at_most: float) -> None:
    """Rank 1 of an unmodified script gets stuck at step 40, in every attempt in another way."""
    os.mkfifo(run.folder / "fifo")
    options = ["--nproc", "2", "--max-restarts", "9", "--no-progress-limit", "9", "--hang-timeout", limit]

    assert run.launch(*options, str(SCRIPT), ",".join(kinds), "0.01", OMP_NUM_THREADS="1") == 0

    causes = ["stopped" if kind == "stop" else "hang" for kind in kinds]
    assert [cause for cause, _ in run.verdicts()] == [*causes, "finished"]
    report = run.cli("report", "run").stdout
    for attempt, ((kind, place), verdict) in enumerate(zip(kinds.items(), run.events("verdict"), strict=False)):
        if kind != "skip":
            # Of two ranks nothing tells which has skipped and which has not: both places are named.
            assert verdict["rank"] == 1
        assert place in verdict["reason"] and "\n" not in verdict["reason"]
        assert verdict["detect_s"] <= at_most
        groups = run.dir.attempt(attempt).groups.read_text()
        assert "rank 0: " in groups and "rank 1" in groups
        assert kind == "stop" or (place in groups and place in report)
