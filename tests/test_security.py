"""Who may steer a run, and what a run keeps to itself: owners, links in the place of files, copies, memory, secrets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor import cli
from supervisor import spec as specs
from supervisor.runs import load
from supervisor.spec import Spec
from supervisor.stops import Stops
from tests.runs_on_disk import recovered_run
from tests.supervised import Run
from trainer.checkpoint.segment import Segment
from trainer.checkpoint.snapshots import newest_snapshot
from trainer.rundir import shm
from trainer.rundir.layout import RunDir

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
STEERING = (
    ["resume", "run", "--quiet"],
    ["launch", "--run-dir", "run", "--quiet"],
    ["gc", "run", "--yes"],
    ["ckpt", "prune", "run", "--keep", "2"],
)


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run in `run/` of the current folder that would go on with a script which leaves a file `ran`."""
    run = recovered_run(tmp_path / "run").run
    (tmp_path / "script.py").write_text("open('ran', 'w')\n")
    command = ("script.py",)
    specs.save(run, Spec("gpt-7f3a", f"test{os.getpid()}", command, False, 1, str(tmp_path), standby=False))
    run.path.chmod(0o700)
    run.events.write_bytes(run.events.read_bytes().replace(b'"state": "finished"', b'"state": "stopped"'))
    (run.checkpoints / "step-00000040").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return run


def test_the_owner_steers(stopped: RunDir) -> None:
    """What the tests below refuse is, without their traps, done."""
    assert cli.run(["resume", "run", "--quiet"]) == 0
    assert Path("ran").exists()


def _refused(run: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    """No command steers the run: each says so in one line, and the script did not run."""
    before = {path: path.lstat() for path in run.path.rglob("*")}
    for command in STEERING:
        code = cli.run(command)
        err = capfd.readouterr().err
        assert (code, err.count("\n")) == (2, 1), (command, code, err)
    assert not Path("ran").exists()
    changed = {p for p in run.path.rglob("*") if p not in before or before[p].st_mtime_ns != p.lstat().st_mtime_ns}
    assert changed == set()


@pytest.mark.parametrize("name", ["run.json", "events.jsonl", "lock", "lock.json", "stop", "metrics.jsonl", "attempts",
                                  "checkpoints", "standby", "faults", "supervisor.log", "modules.json"])  # fmt: skip
def test_links_are_not_steered_through(
    stopped: RunDir, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a link in the place of a file or folder, a run is not taken up, and what the link leads to is untouched."""
    there = tmp_path / "there"
    if (stopped.path / name).exists():
        (stopped.path / name).rename(there)
    elif name in ("standby", "faults"):
        there.mkdir()
    else:
        there.write_text("mine")
    (stopped.path / name).symlink_to(there)
    before = sorted(there.rglob("*")) if there.is_dir() else there.read_bytes()

    _refused(stopped, capfd)

    assert (sorted(there.rglob("*")) if there.is_dir() else there.read_bytes()) == before


@as_root
def test_only_the_owner_steers(stopped: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    """Another user's run can be read, and not steered; a stop file that another user has laid down is passed over."""
    for path in (stopped.path, *stopped.path.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    _refused(stopped, capfd)
    assert cli.run(["status", "run"]) == 0

    stops = Stops()
    stopped.stop.write_text("now")
    os.chown(stopped.stop, NOBODY, NOBODY)
    stops.read(stopped.stop)
    assert stops.kind is None
    stopped.stop.write_text("now")
    stops.read(stopped.stop)
    assert stops.now


def test_a_folder_that_others_can_write(stopped: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    """Others may have changed what would be run: it is not, before its owner has looked."""
    stopped.path.chmod(0o770)
    _refused(stopped, capfd)


def test_a_run_is_private(run: Run) -> None:
    """Whatever the umask and the folder that it was given, nobody else may enter a run's folder."""
    run.dir.path.mkdir(mode=0o777)
    run.dir.path.chmod(0o777)
    run.script("print('here')")
    before = os.umask(0)
    try:
        assert run.launch("--no-standby", "script.py") == 0
    finally:
        os.umask(before)
    assert run.dir.path.stat().st_mode & 0o777 == 0o700
    assert run.dir.attempt(0).rank_log(0).stat().st_mode & 0o777 == 0o600


def test_a_copy_is_another_run(stopped: RunDir, tmp_path: Path) -> None:
    """A copied folder does not carry the original's mark, which its processes and memory are found by; a moved one does."""
    known = load(stopped.path)
    assert known is not None
    shutil.copytree(stopped.path, tmp_path / "copy")
    copy = load(tmp_path / "copy")
    assert copy is not None
    assert copy.spec["mark"] != known.spec["mark"] and shm.is_mark(copy.spec["mark"])
    again = load(tmp_path / "copy")
    assert again is not None and again.spec["mark"] == copy.spec["mark"]

    stopped.path.rename(tmp_path / "moved")
    moved = load(tmp_path / "moved")
    assert moved is not None and moved.spec["mark"] == known.spec["mark"]


@as_root
@pytest.mark.parametrize("trap", ["another user's", "open", "link"])
def test_traps_in_shared_memory(trap: str, tmp_path: Path) -> None:
    """A folder that another user has made under the run's name, or could write, is neither read nor written."""
    segment = shm.segment_of(f"test-{os.getpid()}-{trap[0]}")
    real = tmp_path / "real"
    mine = Segment(segment, 0, 1, 0)
    buffer = mine.begin(4096)
    assert buffer is not None
    mine.commit(buffer, 7, 100, 0)
    assert newest_snapshot(segment) == 7
    try:
        match trap:
            case "another user's":
                os.chown(segment, NOBODY, NOBODY)
            case "open":
                segment.chmod(0o770)
            case "link":
                shutil.move(segment, real)
                segment.symlink_to(real)
        assert newest_snapshot(segment) is None
        with pytest.raises(PermissionError):
            shm.claim(segment)
    finally:
        segment.unlink() if segment.is_symlink() else shutil.rmtree(segment)


def test_modules_of_the_current_folder_are_not_run(tmp_path: Path) -> None:
    """Commands that ask in a folder of somebody else's import nothing from there."""
    recovered_run(tmp_path / "run")
    for name in ("trainer", "supervisor", "torch", "json", "click", "psutil"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit(9)\n")
    supervise = str(Path(sys.executable).with_name("supervise"))
    for command in (["status", "run"], ["doctor"]):
        done = subprocess.run([supervise, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()
