"""The run that is meant where none is named: what is read is the newest, what is stopped is the one that runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.commands.cli import run
from supervisor.commands.meant import to_act_on, to_read
from supervisor.errors import NoSuchRun, Refusal
from supervisor.run import spec as specs
from supervisor.run.folder.lock import RunLock, describe
from supervisor.run.spec import Spec
from tests.support.runs_on_disk import Writer


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """Three runs in runs/ of the current folder, from the oldest to the newest."""
    monkeypatch.chdir(tmp_path)
    made = []
    for number, name in enumerate(("old-0001", "long-0002", "new-0003")):
        writer = Writer(tmp_path / "runs" / name, name)
        text = writer.run.run_json.read_text().replace("02:00:00Z", f"02:00:0{number}Z")
        writer.run.run_json.write_text(text)
        made.append(writer)
    return made


@contextlib.contextmanager
def running(*runs: Writer) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(RunLock(run.run))
        yield


def test_none_runs(runs: list[Writer], capsys: pytest.CaptureFixture[str]) -> None:
    assert to_read(None).id == to_act_on(None).id == "new-0003"
    assert capsys.readouterr().err == ""


def test_an_older_one_runs(runs: list[Writer], capsys: pytest.CaptureFixture[str]) -> None:
    with running(runs[1]):
        assert to_act_on(None).id == "long-0002"
        assert capsys.readouterr().err == ""
        assert to_read(None).id == "new-0003"
        assert "long-0002" in capsys.readouterr().err
        assert to_act_on("new").id == to_read("new").id == "new-0003"
        assert capsys.readouterr().err == ""


def test_two_run(runs: list[Writer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with running(runs[0], runs[2]):
        with pytest.raises(Refusal, match="new-0003 old-0001"):
            to_act_on(None)
        assert to_act_on("old").id == "old-0001"
        # The newest is one of them: there is nothing to say.
        assert to_read(None).id == "new-0003" and capsys.readouterr().err == ""
        # Who stands in a run's folder means that one.
        monkeypatch.chdir(runs[1].run.path)
        assert to_act_on(None).id == to_read(None).id == "long-0002" and capsys.readouterr().err == ""


def test_there_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for meant in to_act_on, to_read:
        with pytest.raises(NoSuchRun):
            meant(None)


def test_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder named by --run-dir: every command calls the run as `ls` does; what is told to be typed can be typed."""
    monkeypatch.chdir(tmp_path)
    here, elsewhere = Writer(tmp_path / "runs" / "x", "train-0001"), Writer(tmp_path / "my runs" / "y", "train-0002")
    for number, each in enumerate((here, elsewhere)):
        specs.save(each.run, Spec(each.name, f"{number:016x}", ("train.py",), False, 2, str(tmp_path)))
    for path, called in (Path("runs/x"), "x"), (Path("my runs/y"), "train-0002"):
        for command in "status", "report":
            assert run([command, str(path)]) == 0
            assert capsys.readouterr().out.startswith(f"{called}  ")
    with RunLock(here.run), RunLock(elsewhere.run):
        assert to_read("x").name == "x" and to_read(str(elsewhere.run.path)).name == "'my runs/y'"
        assert "supervise stop x," in describe(here.run)
        assert "supervise stop 'my runs/y'," in describe(elsewhere.run)
