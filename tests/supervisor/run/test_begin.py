"""What is asked of a run while it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.commands import session
from supervisor.run.folder.requests import ask_to_stop
from supervisor.run.spec import Spec
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
