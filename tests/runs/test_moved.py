"""A run's folder goes elsewhere while the run lives."""

from __future__ import annotations

import shutil

import pytest

from supervisor.process.proctree import marked
from tests.support.jobs import TINY
from tests.support.supervised import Run
from trainer.rundir.layout import RunDir, committed_steps
from trainer.rundir.machine.shm import segment_of

SAVING = ("--checkpoint-every", "20", "--snapshot-every", "1")


@pytest.mark.parametrize("trouble", ["moved", pytest.param("its parent moved", marks=pytest.mark.long), "removed"])
def test_a_folder_that_goes_elsewhere(run: Run, trouble: str) -> None:
    """A run whose folder is moved while it trains is stopped, saved where its folder is now, and goes on from there;
    nothing is made in its old place. One that is removed leaves nothing."""
    home = run.folder / "home"
    run.dir = RunDir(home / "run")
    run.start("--nproc", "2", "--", *TINY, "--steps", "100000", *SAVING, cwd=run.folder)
    run.until_event("checkpoint_committed")
    mark = run.mark()
    target = run.folder / "elsewhere"
    if trouble == "moved":
        run.dir.path.rename(target)
    elif trouble == "its parent moved":
        home.rename(target)
        target /= "run"
    else:
        home.rename(run.folder / ".home")
        shutil.rmtree(run.folder / ".home")
    assert run.process is not None
    code = run.process.wait(120)

    assert marked(mark) == [] and not segment_of(mark).exists()
    assert not run.dir.path.exists()
    said = (run.folder / "stderr").read_text()
    assert "Traceback" not in said
    if trouble == "removed":
        assert code == 104 and "was removed" in said
        return
    run.dir = RunDir(target)
    assert code == 103 and str(target) in run.events("run_ended")[0]["reason"]
    ended = run.events("run_ended")[0]
    # One rank may have come to the end of a step while the other still copies what the one before has left.
    assert ended["checkpoint_step"] == committed_steps(target / "checkpoints")[-1] >= ended["step"] - 2
    run.start("--", *TINY, "--steps", str(ended["step"] + 3), cwd=run.folder)
    assert run.wait() == 0
    assert committed_steps(target / "checkpoints")[-1] == ended["step"] + 3
