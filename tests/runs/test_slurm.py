"""A real Slurm: a job saves before its time is over, is queued again, and goes on with the same run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from supervisor.reading.events_file import read_events
from tests.support.slurm import MISSING, slurm
from tests.support.waiting import until
from trainer.checkpoint.disk.restore import load
from trainer.rundir.layout import RunDir, step_name

SCRIPT = """
import os, time, torch
from trainer.checkpoint import Checkpointer
torch.manual_seed(0)
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(model.parameters())
checkpointer = Checkpointer(model=model, optimizer=optimizer, every=1000)
later = os.environ.get("SLURM_RESTART_COUNT") == "1"
for step in range(checkpointer.restore(), 200):
    model(torch.full((2, 4), step / 100)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    checkpointer.step(step + 1)
    # The first time its minute is too short.
    time.sleep(0 if later else 0.4)
checkpointer.close()
"""


@pytest.mark.long
@pytest.mark.skipif(MISSING, reason="slurm-wlm is not installed here, or this is not root: no Slurm to ask")
def test_a_job_goes_on_after_its_time_limit() -> None:
    """Nothing of the first start is lost, and it ends as one that was never interrupted."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="sl-") as name, slurm(Path(name)) as env:
        folder = Path(name)
        (folder / "train.py").write_text(SCRIPT)

        def asked(*command: str) -> str:
            done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        supervise = Path(sys.executable).with_name("supervise")
        run = RunDir(folder / "run")
        words = ["--nproc", "1", "--run-dir", str(run.path), "train.py"]
        # The warning comes up to a minute early, so at once.
        job = asked(str(supervise), "submit", "--slurm", "--time=1", "--signal=USR1@55", "--", *words)

        def state() -> str:
            return asked("squeue", "--noheader", "--format=%T", "--job", job)

        def ended() -> list[int]:
            events = read_events(run.events)[0] if run.events.exists() else ()
            return [event["exit_code"] for event in events if event["msg"] == "run_ended"]

        until(lambda: ended() == [75] and state() == "PENDING", 180)
        asked("scontrol", "update", f"JobId={job}", "StartTime=now")
        until(lambda: ended() == [75, 0] and "COMPLETED" in asked("scontrol", "show", "job", job), 180)

        events = read_events(run.events)[0]
        saved = next(event["checkpoint_step"] for event in events if event["msg"] == "run_ended")
        again = next(event for event in events if event["msg"] == "first_step" and event["attempt"] == 1)
        assert (again["from_step"], again["lost_steps"]) == (saved, 0) and saved > 0
        assert load(run.checkpoints / step_name(200), 0).shared
