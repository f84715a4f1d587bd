"""The run that is meant where none is named: what is read is the newest, what is stopped is the one that runs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.commands.cli import run
from supervisor.commands.meant import to_act_on, to_read
from supervisor.errors import NoSuchRun, Refusal
from supervisor.run import spec as specs
from supervisor.run.folder.lock import RunLock, describe
from supervisor.run.runs import all_runs, find
from supervisor.run.spec import Spec
from tests.support.runs_on_disk import Writer
from trainer.rundir.codes import ExitCode


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


def test_a_link_or_a_copy_hides_no_run(
    runs: list[Writer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run is there once, called by its folder, and its exact name means it alone."""
    one = runs[1]
    Path("runs/a-link").symlink_to(one.name)
    Path("runs/loop").symlink_to("loop")
    shutil.copytree(one.run.path, f"{one.run.path}.bak")
    Path("elsewhere").mkdir()
    runs[0].run.path.rename("elsewhere/old")
    Path("runs/moved").symlink_to("../elsewhere/old")
    assert sorted(known.run.path.name for known in all_runs()) == ["long-0002", "long-0002.bak", "moved", "new-0003"]
    with running(one):
        assert to_act_on(None).run.path.name == one.name
    for name, folder in (
        (one.name, one.name), ("a-link", one.name), ("long-0002.b", "long-0002.bak"), ("mov", "old"), ("old-0", "old")
    ):  # fmt: skip
        assert find(name).run.path.resolve().name == folder, name
    with pytest.raises(NoSuchRun, match=r"long-0002 long-0002\.bak; give more"):
        find("long")
    # The folder is stronger than the id that a copy shares with it.
    Path("runs/long-0002.bak").rename("runs/renamed")
    assert find(one.name).run.path.name == one.name


@pytest.mark.parametrize(
    "command",
    "rm,stop,status,report,tail,resume,attach,stacks,gc,policy,ckpt ls,ckpt prune --keep 2".split(","),
)
def test_an_empty_word_is_no_run(
    runs: list[Writer], command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the only run, nor the run or the checkpoints of the current folder."""
    for other in runs[1:]:
        shutil.rmtree(other.run.path)
    (runs[0].run.path / "step-00000001").mkdir()
    for folder in runs[0].run.path, Path("../.."):
        with running(runs[0]):
            assert run([*command.split(), ""]) == ExitCode.NO_SUCH_RUN
        assert "empty" in capsys.readouterr().err and runs[0].run.run_json.exists()
        monkeypatch.chdir(folder)


@pytest.mark.parametrize("text", ["", '{"schema": 99, "run": "x"}', '{"sch', "[]"])
def test_a_run_that_cannot_be_read_is_told(
    runs: list[Writer], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, by a prefix, and wherever it is left out. It never means another run."""
    runs[2].run.run_json.write_text(text)
    shutil.copytree(runs[1].run.path, f"{runs[2].run.path}.bak")
    path = "runs/new-0003/run.json"
    assert run(["status", "new-0003"]) == run(["rm", "new-0003"]) == ExitCode.USAGE
    assert capsys.readouterr().err.count(path) == 2
    assert run(["rm", "new"]) == ExitCode.NO_SUCH_RUN
    assert "new-0003.bak new-0003; give more" in capsys.readouterr().err
    shutil.rmtree(f"{runs[2].run.path}.bak")
    assert run(["status", "new"]) == ExitCode.USAGE
    assert path in capsys.readouterr().err
    for command in ["ls"], ["ls", "--json"], ["gc"]:
        assert run(command) == 0
        assert path in capsys.readouterr().err
    for meant in to_read, to_act_on:
        assert meant(None).id == "long-0002" and path in capsys.readouterr().err
    for other in runs[:2]:
        shutil.rmtree(other.run.path)
    for meant in to_read, to_act_on:
        with pytest.raises(Refusal, match=path):
            meant(None)
    assert run(["ls"]) == 0 and "no such run here" in capsys.readouterr().err
