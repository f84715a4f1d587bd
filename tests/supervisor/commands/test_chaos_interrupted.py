"""Ctrl-C in the moment in which `chaos` starts a run."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from supervisor.chaos.runner import Runner
from supervisor.chaos.session import Interrupted, interruptible
from trainer.rundir.layout import RunDir


def test_a_run_that_has_just_begun_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes when the process is there, and nobody has its pid yet."""
    born: list[subprocess.Popen[bytes]] = []

    def start(_: list[str], **options: Any) -> subprocess.Popen[bytes]:
        # It ends as soon as the stop file is there.
        wait = 'while ! [ -e "$0" ]; do sleep 0.02; done'
        born.append(popen(["sh", "-c", wait, str(tmp_path / "run" / "stop")], **options))
        os.kill(os.getpid(), signal.SIGINT)
        return born[0]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    (tmp_path / "run").mkdir()
    with interruptible(), pytest.raises(Interrupted):
        Runner(RunDir(tmp_path / "run"), ["script.py"], 60.0).run(0)
    try:
        assert born[0].poll() == 0
    finally:
        born[0].kill()
        born[0].wait()
