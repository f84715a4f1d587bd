"""SIGKILL at random moments, resumed from memory: the same bits, and at most the step that was being copied is lost.

Few of them: what a reader finds at each write is looked at in test_snapshot_bits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

from tests.support.jobs import ROOT, TINY, environment, final_state, same, trainer
from trainer.checkpoint.memory import snapshots
from trainer.rundir.layout import committed_steps
from trainer.rundir.machine.shm import segment_of

KILLS = 4
STEPS = 120


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """The first run's end and that of the killed one are equal; a step that was finished before the last one is never
    done again; nothing of it was ever written to disk before the end."""
    flags = [*TINY, "--amp", "fp16", "--checkpoint-every", "off", "--steps", str(STEPS)]
    trainer(1, *flags, "--out", str(tmp_path / "whole"))
    mark = f"test{uuid.uuid4().hex[:12]}"
    segment = segment_of(mark)
    # As the supervisor makes it: a rank that does not find its run makes none in its place.
    (tmp_path / "run").mkdir()
    run = {"SUPERVISE_MARK": f"{mark}.0", "SUPERVISE_RUN_DIR": str(tmp_path / "run"), "SUPERVISE_ATTEMPT": "0"}
    command = [sys.executable, "-m", "tests.support.killed_trainer", str(KILLS), "1", *flags, "--snapshot-every", "1"]
    try:
        done = subprocess.run(
            command, env={**environment(), **run}, capture_output=True, text=True, timeout=300, cwd=ROOT, check=True
        )
    finally:
        snapshots.remove(segment)
    lines = [json.loads(line) for line in done.stdout.splitlines()]

    *killed, (status, _, _) = lines
    assert status == 0, done.stderr
    for _, finished, snapshot in killed:
        assert (snapshot or 0) >= finished - 1
    # However fast this machine is, or slow, all kills but the first come while it trains.
    assert [status for status, _, _ in killed] == [9] * KILLS
    newest = [snapshot or 0 for _, _, snapshot in killed]
    assert newest == sorted(set(newest))
    assert committed_steps(tmp_path / "run" / "checkpoints") == [STEPS]
    for whole, resumed in zip(
        final_state(tmp_path / "whole", STEPS), final_state(tmp_path / "run", STEPS), strict=True
    ):
        assert same(whole, resumed)
    assert not segment.exists()
