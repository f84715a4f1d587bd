"""The unit of a run is sound for systemd, whatever the run is called and wherever it lies."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from supervisor.commands.unit import name, unit

ODD = 'we ird$HOME "%h" \\n é'


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here to ask")
def test_systemd_takes_it(tmp_path: Path) -> None:
    """systemd-analyze verify says nothing, and reads the words that were meant."""
    folder = tmp_path / ODD
    folder.mkdir()
    program = folder / "supervise"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = tmp_path / name(ODD)
    path.write_text(unit(ODD, folder, str(folder), [str(program)], 30.0, {"PATH": "/bin", "HF_HOME": ODD, "KEY": "x"}))

    checked = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(path)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert [line for line in checked.stderr.splitlines() if path.name in line] == []
    assert checked.returncode == 0, checked.stderr
    assert "KEY" not in path.read_text()


def test_names_differ_as_the_runs_do() -> None:
    runs = ["a", "a b", "a_b", "a.b", "a_20_b", "../a", "a@b"]
    assert len({name(run) for run in runs}) == len(runs)
    assert all("/" not in name(run) and " " not in name(run) for run in runs)
