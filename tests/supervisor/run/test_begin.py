"""What is asked of a run while it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.commands import session
from supervisor.run.folder.requests import ask_to_stop
from supervisor.run.spec import Spec
from tests.support.runs_on_disk import Writer
from trainer.rundir.layout import RunDir


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_stop_that_is_asked_for_while_a_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: bool
) -> None:
    """It is there for the supervisor. One that was meant for an earlier supervisor is not."""
    run = RunDir(tmp_path)
    ask_to_stop(run, now=False)

    def wanted() -> Spec:
        if meanwhile:
            ask_to_stop(run, now=True)
        return Spec("run", "mark", ("script.py",), module=False, nproc=1, cwd=str(tmp_path))

    def drive(run: RunDir, spec: Spec, **_: object) -> int:
        return int(run.stop.exists())

    monkeypatch.setattr(session, "drive", drive)
    assert session.begin(run, wanted) == meanwhile


def test_the_budget_is_by_this_boots_clock(tmp_path: Path) -> None:
    """Restarts of before a reboot, or on another node, are as old as they are, whatever its clock showed."""
    w = Writer(tmp_path / "run")
    w.event("run_started", 0, attempt=-1, boot="a", mono=1e6)
    w.event("relaunch_scheduled", 10, counted=True, mono=1e6 + 10)
    w.event("run_started", 3610, boot="b", mono=50.0)

    assert session._history(w.run).restarts == (50.0 - 3600.0,)
