"""gc removes what dead runs left, all of it and nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from supervisor.commands import gc
from supervisor.nodes.own import abandoned
from supervisor.run import leftovers
from supervisor.run.folder.lock import claimed
from supervisor.run.runs import load
from tests.support.runs_on_disk import Writer, mark_of, recovered_run
from trainer.rundir.variables import MARK

MINE, OTHER = mark_of("gpt-7f3a"), mark_of("other")


@pytest.fixture
def dead(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Writer:
    """A run that left a half-written checkpoint, temporary files and shared memory beside what must stay."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(leftovers, "SHM", tmp_path / "shm")
    # What other tests have on this machine is not to be found, nor removed.
    monkeypatch.setattr(gc, "abandoned", lambda: abandoned(tmp_path / "shm"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    writer = recovered_run(tmp_path / "runs" / "gpt")
    run = writer.run
    run.lock.touch()
    for name in ("step-00000040", ".step-00000050.tmp-abc"):
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / "rank0.safetensors").write_bytes(b"x" * 5000)
    (run.path / ".run.json.tmp-12-3").write_bytes(b"{")
    (run.checkpoints / ".latest.tmp-12-4").write_bytes(b"step")
    (run.path / ".mine").touch()
    (tmp_path / "shm").mkdir()
    for name in (f"supervise-{MINE}.rank0", f"supervise-{MINE}1.rank0", "other"):
        (tmp_path / "shm" / name).write_bytes(b"x" * 5000)
    return writer


@contextmanager
def marked(mark: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that carries `mark` as a rank of its attempt 0 would."""
    code = "import signal; print(flush=True); signal.pause()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, MARK: f"{mark}.0"}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def run_gc(*args: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(gc.command, [*args, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["leftovers"]
    return found


def names(tmp_path: Path) -> set[str]:
    """Every path below the test's folder."""
    return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}


LEFT = {
    "runs/gpt/checkpoints/.step-00000050.tmp-abc",
    "runs/gpt/checkpoints/.step-00000050.tmp-abc/rank0.safetensors",
    "runs/gpt/.run.json.tmp-12-3",
    "runs/gpt/checkpoints/.latest.tmp-12-4",
    f"shm/supervise-{MINE}.rank0",
}


def test_a_dry_run_lists_and_removes_nothing(dead: Writer, tmp_path: Path) -> None:
    """Without --yes everything is found and everything stays."""
    before = names(tmp_path)
    with marked(MINE) as process:
        found = run_gc()
        assert process.poll() is None
    assert [item["kind"] for item in found] == ["process", "file", "file", "folder", "memory"]
    assert names(tmp_path) == before


def test_yes_removes_exactly_what_was_left(dead: Writer, tmp_path: Path) -> None:
    """Processes with the run's mark die, its temporary folders, files and memory go, all else stays."""
    before = names(tmp_path)
    with marked(MINE) as process, marked(OTHER) as other:
        found = run_gc("--yes")
        assert (process.wait(timeout=60), other.poll()) == (-9, None)
    assert all(item["removed"] for item in found)
    assert before - names(tmp_path) == LEFT
    assert run_gc("--yes") == []


def test_what_was_born_after_the_look_dies_too(dead: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that its parent forked between the look and the parent's end is not left behind."""
    with marked(MINE) as parent, marked(MINE) as child:
        look = leftovers.marks
        looks = iter([{MINE: [psutil.Process(parent.pid)]}])
        monkeypatch.setattr(gc, "marks", lambda: next(looks, None) or look())
        found = run_gc("--yes")
        assert (parent.wait(timeout=60), child.wait(timeout=60)) == (-9, -9)
    assert [item["place"] for item in found[:2]] == [str(parent.pid), str(child.pid)]


def test_a_held_run_is_never_touched(dead: Writer, tmp_path: Path) -> None:
    """While a supervisor holds the lock, its processes and files are nobody's leftovers."""
    before = names(tmp_path)
    with marked(MINE) as process, dead.run.lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_gc("--yes") == []
        assert process.poll() is None
    assert names(tmp_path) == before


def test_a_process_that_lost_the_mark_is_spared(dead: Writer) -> None:
    """A pid that was reused since the look names another process, which lives on."""
    with marked(OTHER) as process:
        leftover = leftovers.Leftover("gpt", leftovers.Kind.PROCESS, str(process.pid), 0)
        known = load(dead.run.path)
        assert known is not None and leftovers.remove(leftover, known) is None
        assert process.poll() is None


def test_nothing_is_removed_under_a_process_that_lives(
    dead: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a process would not die, what it may be writing stays, and the exit code says so."""
    monkeypatch.setattr(leftovers, "_kill", lambda pid, mark: "alive 5 s after SIGKILL")
    before = names(tmp_path)
    with marked(MINE):
        result = CliRunner().invoke(gc.command, ["--yes"], catch_exceptions=False)
    assert (result.exit_code, names(tmp_path)) == (1, before)
    assert "alive 5 s after SIGKILL" in result.stdout


def test_the_lock_is_held_while_removing(dead: Writer) -> None:
    """Nobody can take up a run while it is being cleaned, and everybody can afterwards."""
    with claimed(dead.run) as ours, claimed(dead.run) as second:
        assert (ours, second) == (True, False)
    with claimed(dead.run) as again:
        assert again


def test_links_are_never_followed(dead: Writer, tmp_path: Path) -> None:
    """A link with a temporary's name is not ours to remove, and what it points to stays."""
    target = tmp_path / "precious"
    target.mkdir()
    (target / "weights").touch()
    (dead.run.checkpoints / ".step-00000060.tmp-x").symlink_to(target)
    run_gc("--yes")
    assert (target / "weights").exists()


def test_text_goes_to_stdout_and_advice_to_stderr(dead: Writer) -> None:
    """A table for people, and how to remove what it shows."""
    result = CliRunner().invoke(gc.command, [], catch_exceptions=False)
    assert result.stdout.splitlines()[0].split() == ["RUN", "KIND", "SIZE", "WHAT"]
    assert "supervise gc --yes" in result.stderr
