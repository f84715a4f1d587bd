"""Runs are found from any folder: with a home, without one, by nobody else, and only while they are there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor.run.folder import registry, user_folders
from supervisor.run.folder.registry import register, registered
from tests.support.runs_on_disk import recovered_run
from tests.support.supervised import ROOT, Run
from trainer.rundir.layout import RunDir

MANY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from supervisor.run.folder.registry import register
from trainer.rundir.layout import RunDir
print(flush=True)
sys.stdin.readline()
for number in range(50):
    register(RunDir(Path(sys.argv[2]) / f"run{number}"))
"""


@pytest.fixture(params=["home", "no home", "a home that is a file"])
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder below which there are a user's places, with a usable home and without."""
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(user_folders, "_TEMPORARY", (tmp_path / "temporary",))
    (tmp_path / "temporary").mkdir()
    if request.param == "home":
        (tmp_path / "home").mkdir()
    elif request.param == "no home":
        monkeypatch.setattr(user_folders.Path, "home", _nobody)
    else:
        (tmp_path / "home").touch()
    return tmp_path


def _nobody() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_runs_are_found_while_they_are_there(place: Path) -> None:
    """Each once, in folders that nobody else can enter; what was removed is dropped, what is damaged too; the entries
    of another machine stay."""
    runs = [recovered_run(place / name / "runs" / "gpt").run for name in "ab"]
    for run in [*runs, runs[0]]:
        register(run)
    assert sorted(registered()) == [run.path for run in runs]
    folder = registry._folder()
    assert folder is not None and folder.stat().st_mode & 0o077 == folder.parent.stat().st_mode & 0o077 == 0

    entry = next(folder.glob("*.json"))
    foreign = {**json.loads(entry.read_bytes()), "host": "elsewhere"}
    (folder / "foreign.json").write_text(json.dumps(foreign))
    (folder / "damaged.json").write_text("{")
    shutil.rmtree(place / "a")
    assert registered() == [runs[1].path]
    assert len(list(folder.glob("*.json"))) == 2


@pytest.mark.parametrize("trap", ["link", "others"])
def test_a_temporary_folder_that_others_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    """A link in the place of our folder is not followed; a folder that others can enter is closed to them."""
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(user_folders, "home", lambda: None)
    monkeypatch.setattr(user_folders, "_TEMPORARY", (tmp_path,))
    ours = tmp_path / f"supervise-user-{os.geteuid()}"
    (tmp_path / "theirs").mkdir()
    if trap == "link":
        ours.symlink_to(tmp_path / "theirs")
    else:
        ours.mkdir(mode=0o777)
    register(recovered_run(tmp_path / "run").run)
    assert list((tmp_path / "theirs").iterdir()) == []
    assert registered() == ([] if trap == "link" else [tmp_path / "run"])
    assert trap == "link" or ours.stat().st_mode & 0o077 == 0


def test_launches_at_once_lose_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes register fifty runs each at the same time, while a third looks."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "many.py").write_text(MANY)
    for name in "ab":
        for number in range(50):
            (tmp_path / name / f"run{number}").mkdir(parents=True)
            (tmp_path / name / f"run{number}" / "run.json").touch()
    command = [sys.executable, str(tmp_path / "many.py"), str(ROOT)]
    writers: list[Any] = [
        subprocess.Popen([*command, str(tmp_path / name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in "ab"
    ]
    for writer in writers:
        writer.stdout.readline()
    for writer in writers:
        writer.stdin.write(b"go\n")
        writer.stdin.close()
    while any(writer.poll() is None for writer in writers):
        registered()
    for writer in writers:
        writer.stdout.close()
    assert len(registered()) == 100


def test_gc_from_another_folder(run: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> None:
    """What a run has left is found by `gc` without a RUN, in whatever folder that is called."""
    assert run.launch(run.script("pass")) == 0
    left = run.dir.path / ".run.json.tmp-12-3"
    left.touch()
    elsewhere = Run(tmp_path_factory.mktemp("elsewhere"))
    # The fork servers that other tests keep warm stay.
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    elsewhere.cli("gc", "--yes")
    assert not left.exists() and RunDir(run.dir.path).run_json.exists()
