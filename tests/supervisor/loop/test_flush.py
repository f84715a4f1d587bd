"""A flush that dies, fails, or meets others leaves the old checkpoint or the new one, and no pin."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor.process.proctree import marked
from tests.support.disks import CrashingDisk, Cut, FullDisk
from tests.support.jobs import ROOT, environment, holds, write
from tests.support.snapshots import snapshot_of
from tests.support.waiting import until
from trainer.checkpoint.disk import retention, store
from trainer.checkpoint.disk.commit import begin
from trainer.checkpoint.disk.flush import flush
from trainer.checkpoint.disk.restore import Tiers, restore
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.memory import snapshots
from trainer.checkpoint.memory.board import Board
from trainer.rundir.files.durable import DISK, Disk
from trainer.rundir.layout import committed_steps
from trainer.rundir.machine import shm
from trainer.rundir.programs import program

_ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")
AUTOGROUPS = (
    _ENABLED.exists() and _ENABLED.read_text().strip() == "1" and Path("/proc/self/autogroup").read_text() != ""
)
FLUSH = program("checkpoint.disk.flush")


@pytest.fixture
def segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shm, "ROOT", tmp_path)
    return shm.segment_of("m")


def _pinned(folder: Path) -> bool:
    return snapshots.any_pinned(snapshots.boards(folder).values())


def _two(folder: Path) -> Path:
    write(folder, 1)
    write(folder, 2)
    return folder


def _flush(segment: Path, folder: Path, disk: Disk = DISK) -> dict[str, Any]:
    return flush(segment, folder, 3, 2, None, disk)


def _calls(segment: Path, tmp_path: Path) -> int:
    disk = CrashingDisk()
    assert "error" not in _flush(segment, _two(tmp_path / "count"), disk)
    return disk.calls


def test_every_death_leaves_old_or_new(segment: Path, tmp_path: Path) -> None:
    """It dies at any call: the newest checkpoint is whole, what is left over is swept, and a second flush works."""
    snapshot_of(segment, 3)
    for cut in range(_calls(segment, tmp_path)):
        folder = _two(tmp_path / f"cut-{cut}")
        with pytest.raises(Cut):
            _flush(segment, folder, CrashingDisk(cut))

        newest = store.newest_good(folder)
        assert newest is not None
        assert newest.step in (2, 3)
        assert holds(folder, newest.step)
        loaded = restore(Tiers(folder), "auto", Ranks(), DISK)
        assert loaded is not None
        assert loaded.manifest.step == newest.step
        assert not list(folder.glob(".step-*"))
        assert "error" not in _flush(segment, folder)
        assert holds(folder, 3)


def test_a_full_disk_is_an_error_and_leaves_nothing(segment: Path, tmp_path: Path) -> None:
    """No space at any call: the error is said, the pins are gone, no temporary is left, the older ones are as they
    were."""
    snapshot_of(segment, 3)
    for full in range(_calls(segment, tmp_path)):
        folder = _two(tmp_path / f"full-{full}")
        outcome = _flush(segment, folder, FullDisk(full))

        assert not _pinned(segment)
        if "error" in outcome:
            assert "No space left" in outcome["error"]
            assert [found.problem for found in store.listing(folder, store.verify)][:2] == [None, None]
            assert holds(folder, 2)
            assert not list(folder.glob(".step-*"))
        else:
            assert holds(folder, 3)


def test_it_is_pinned_while_it_is_read_and_not_after(segment: Path, tmp_path: Path) -> None:
    """From before the first byte is read until the end, whatever the end."""
    snapshot_of(segment, 3)
    seen: list[bool] = []

    class Watching(Disk):
        def create(self, path: Path, chunks: Any, size: int = 0) -> None:
            seen.append(_pinned(segment))
            super().create(path, chunks, size)

    assert _flush(segment, tmp_path / "c", Watching())["step"] == 3
    assert seen
    assert all(seen)
    assert not _pinned(segment)
    assert "error" in flush(segment, tmp_path / "c", 7, 2, None)
    assert flush(tmp_path / "none", tmp_path / "c", None, 2, None)["step"] is None


def test_a_pin_of_the_rank_outlives_that_of_a_late_flush(
    segment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush of the newest snapshot has found it and stands still; meanwhile the rank promises another one in the same
    buffer. That flush fails, and the promised snapshot is still there for its own."""
    snapshot_of(segment, 3)
    find = snapshots.find

    def late(*arguments: Any, **options: Any) -> Any:
        found = find(*arguments, **options)
        snapshot_of(segment, 4)
        snapshot_of(segment, 5, pin=True)
        assert found is not None and find(segment) is not None and found.path(0) == find(segment, 5).path(0)
        return found

    monkeypatch.setattr(snapshots, "find", late)
    assert "written over" in flush(segment, tmp_path / "c", None, 9, None)["error"]
    monkeypatch.setattr(snapshots, "find", find)
    assert snapshots.pinned(segment) == [5]
    snapshot_of(segment, 6)
    snapshot_of(segment, 7)
    assert flush(segment, tmp_path / "c", 5, 9, None)["step"] == 5
    assert not _pinned(segment)


def test_a_snapshot_written_over_meanwhile_is_not_committed(segment: Path, tmp_path: Path) -> None:
    """A rank had already begun to write over it when the pin came: an error, and no checkpoint of mixed steps."""
    snapshot_of(segment, 3)
    found = snapshots.find(segment)
    assert found is not None

    class Overwriting(Disk):
        def create(self, path: Path, chunks: Any, size: int = 0) -> None:
            super().create(path, chunks, size)
            Board(shm.board_path(segment, 1)).invalidate(found.places[1][0])

    outcome = flush(segment, tmp_path / "c", None, 2, None, Overwriting())
    assert "written over" in outcome["error"]
    assert committed_steps(tmp_path / "c") == []


def test_newest_is_flushed_only_if_it_is_newer(segment: Path, tmp_path: Path) -> None:
    """After a crash: what the disk has already, whole, is not written again; a damaged one does not count."""
    folder = tmp_path / "c"
    snapshot_of(segment, 3)
    assert flush(segment, folder, None, 2, None)["bytes"] > 0
    assert flush(segment, folder, None, 2, None) == {"step": 3, "existed": True}
    (folder / "step-00000003" / "rank1.safetensors").write_bytes(b"")
    assert flush(segment, folder, None, 2, None)["bytes"] > 0
    assert holds(folder, 3)
    assert (folder / "quarantine" / "step-00000003-1").is_dir()


def test_what_is_sealed_comes_before_the_commit(segment: Path, tmp_path: Path) -> None:
    """The file given is synced before the rename; if that fails there is no checkpoint."""
    snapshot_of(segment, 3)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    synced: list[tuple[str, list[int]]] = []

    class Watching(Disk):
        def fsync(self, fd: int, path: Path) -> None:
            synced.append((path.name, committed_steps(tmp_path / "c")))
            super().fsync(fd, path)
            if path.name == "metrics.jsonl" and len(synced) < 4:
                raise OSError(errno.EIO, "Input/output error")

    assert "Input/output" in flush(segment, tmp_path / "c", 3, 2, tmp_path / "metrics.jsonl", Watching())["error"]
    assert committed_steps(tmp_path / "c") == []
    assert flush(segment, tmp_path / "c", 3, 2, tmp_path / "metrics.jsonl", Watching())["step"] == 3
    assert ("metrics.jsonl", []) in synced


def test_a_sweep_removes_files_that_the_dead_were_writing(tmp_path: Path) -> None:
    """What a process that was killed was putting in the place of `latest` is removed; what a living one writes is
    not."""
    (tmp_path / "quarantine").mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = [tmp_path / f".latest.tmp-{gone.pid}-3", tmp_path / "quarantine" / f".step-00000004-1.txt.tmp-{gone.pid}-4"]
    alive = tmp_path / f".latest.tmp-{os.getpid()}-0"
    for path in (*dead, alive):
        path.write_text("step-")

    retention.sweep(tmp_path, DISK)

    assert alive.exists() and not any(path.exists() for path in dead)


def test_a_sweep_leaves_a_living_flush_alone(segment: Path, tmp_path: Path) -> None:
    """A rank that restores meanwhile sweeps what the dead left, and not the folder that is being written."""
    snapshot_of(segment, 3)
    folder = _two(tmp_path / "c")

    class Sweeping(Disk):
        def fsync(self, fd: int, path: Path) -> None:
            super().fsync(fd, path)
            retention.sweep(folder, DISK)

    left = folder / retention.temporary_name(9, "flush-")
    left.mkdir()
    assert "error" not in _flush(segment, folder, Sweeping())
    assert holds(folder, 3)
    assert not left.exists()


def test_a_save_of_the_same_step_meanwhile(segment: Path, tmp_path: Path) -> None:
    """The final save and a flush of that step, or of an older one, at the same time: each is content with the
    other's."""
    snapshot_of(segment, 3)
    saved: list[Any] = []

    class Saving(Disk):
        def __init__(self, step: int) -> None:
            self._step = step

        def create(self, path: Path, chunks: Any, size: int = 0) -> None:
            super().create(path, chunks, size)
            if path.name == "rank1.safetensors":
                saved.append(write(path.parent.parent, self._step, keep=2))

    for step in (3, 4):
        folder = _two(tmp_path / f"with-{step}")
        outcome = _flush(segment, folder, Saving(step))
        assert "error" not in outcome
        assert saved[-1].error is None
        assert holds(folder, 3)
        assert holds(folder, step)
        assert store.read_latest(folder) == step
        assert not list(folder.glob(".step-*"))


def test_a_commit_that_comes_second(segment: Path, tmp_path: Path) -> None:
    """The direct save finds the flush's checkpoint in its place: it counts as saved, and its temporary is gone."""
    snapshot_of(segment, 3)
    folder = tmp_path / "c"

    class Flushing(Disk):
        def rename(self, source: Path, target: Path) -> None:
            if target.name == "step-00000003" and not target.exists():
                assert "error" not in _flush(segment, folder)
            super().rename(source, target)

    outcome = write(folder, 3, Flushing())
    assert outcome.error is None
    assert outcome.existed
    assert holds(folder, 3)
    assert not list(folder.glob(".step-*"))
    assert begin(folder, 3, 1, DISK) is None


def _run(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, *FLUSH, *arguments], env=environment(), capture_output=True, text=True, cwd="/"
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_the_program(segment: Path, tmp_path: Path) -> None:
    """One JSON line and an exit status, in an interpreter that loads no torch, from any folder."""
    snapshot_of(segment, 3)
    folder = tmp_path / "c"
    code, outcome = _run(str(segment), str(folder), "--step", "3", "--keep", "2", "--seal", str(tmp_path / "no"))
    assert (code, outcome["step"]) == (0, 3)
    assert outcome["bytes"] > 0
    assert holds(folder, 3)
    assert _run(str(segment), str(folder), "--step", "newest") == (0, {"step": 3, "existed": True})
    code, outcome = _run(str(segment), str(folder), "--step", "9")
    assert code == 1
    assert "step 9" in outcome["error"]
    path = f"sys.path.insert(0, {str(ROOT)!r})"
    code = f"import sys; {path}; import trainer.checkpoint.disk.flush; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=os.sep, check=False).returncode == 0


def test_a_fork_flushes(segment: Path, tmp_path: Path) -> None:
    """The fork server runs the same program in a fork: its own session and mark, its report in a file."""
    snapshot_of(segment, 3)
    folder, mark = tmp_path / "c", "0123456789abcdef"
    env = {**environment(), "SUPERVISE_MARK": f"{mark}.group"}
    command = [sys.executable, *program("rank.engine.fork_server")]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None and server.stdout is not None

        def ask(step: str, out: Path, mark: str) -> int:
            arguments = [str(segment), str(folder), "--step", step]
            body = {"run": "checkpoint.disk.flush", "arguments": arguments, "out": str(out), "mark": mark}
            server.stdin.write(json.dumps(body).encode() + b"\n")
            server.stdin.flush()
            answer = json.loads(server.stdout.readline())
            assert answer["ran"] == str(out)
            return int(answer["pid"])

        held = tmp_path / "held"
        os.mkfifo(held)  # it waits there before it flushes
        pid = ask("3", held, f"{mark}.flush")
        until(lambda: [process.pid for process in marked(f"{mark}.flush")] == [pid])
        assert os.getsid(pid) == pid
        with held.open() as told:
            assert json.loads(told.read())["step"] == 3
        assert holds(folder, 3)
        until(lambda: not marked(f"{mark}.flush"))
        ask("9", tmp_path / "out", f"{mark}.flush")
        until(lambda: (tmp_path / "out").exists() and b"step 9" in (tmp_path / "out").read_bytes())
        assert ask("3", tmp_path / "no", "a mark of another length") == 0
        assert not (tmp_path / "no").exists()


@pytest.mark.skipif(not AUTOGROUPS, reason="the kernel weighs no sessions")
@pytest.mark.parametrize("alone", [True, False])
def test_it_is_nice_to_other_sessions(alone: bool) -> None:
    """A session of its own is as nice as its process, or that would mean nothing; somebody else's session is left
    alone."""
    code = (
        f"import sys, os; sys.path.insert(0, {str(ROOT)!r})\n"
        "from trainer.rundir.machine.priority import lower\n"
        "read = lambda: int(open('/proc/self/autogroup').read().split()[-1])\n"
        "before = read(); lower(7); print(os.nice(0), read() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], start_new_session=alone, stdout=subprocess.PIPE, check=True)
    assert done.stdout.split() == [str(os.nice(0) + 7).encode(), b"7" if alone else b"0"]
