"""The flusher keeps its promises whatever becomes of its process: the checkpoint is made, and nothing half written or
pinned is left."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import pytest

from supervisor.group.fork_server import Fork
from supervisor.loop.flush import Flusher
from supervisor.run.checkpoints import flush_command
from tests.support.jobs import holds
from tests.support.snapshots import snapshot_of
from tests.support.waiting import until
from trainer.checkpoint.disk import retention
from trainer.checkpoint.memory import snapshots
from trainer.rundir.files.durable import DISK
from trainer.rundir.layout import RunDir, step_name
from trainer.rundir.machine import shm
from trainer.rundir.machine.proc import is_running


@pytest.fixture
def segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shm, "ROOT", tmp_path)
    return shm.segment_of("m")


@pytest.mark.parametrize("pid", [0, None])
def test_a_fork_that_never_comes(
    segment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pid: int | None
) -> None:
    """The fork server dies before it has forked the flush (0), or stands still (None): the flush is a process of its
    own."""
    monkeypatch.setattr("supervisor.loop.flush.ANSWERS", 0.05)
    snapshot_of(segment, 3)
    run = RunDir(tmp_path)
    asked = []

    def forks(*order: object) -> Fork:
        asked.append(order)
        return Fork(BytesIO(), lambda: pid)

    flusher = Flusher(run, "m", forks)
    flusher.segment = segment
    outcomes = list(flusher.finish())

    assert [name for name, *_ in asked] == ["checkpoint.disk.flush"]
    assert [outcome["step"] for outcome in outcomes if outcome] == [3]
    assert holds(run.checkpoints, 3)
    assert not snapshots.any_pinned(snapshots.boards(segment).values())


def test_what_a_flush_that_was_killed_has_begun_is_removed(
    segment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush dies in the middle, and no rank restores afterwards: its folder is removed at once; one that a rank is
    saving into stays until no rank is alive."""
    snapshot_of(segment, 3)
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    saving = run.checkpoints / retention.temporary_name(9)
    saving.mkdir()
    script = tmp_path / "dies.py"
    begun = retention.temporary_name(3, retention.FLUSHED)
    script.write_text(f"import os; os.mkdir({str(run.checkpoints / begun)!r}); os.kill(os.getpid(), 9)")
    whole = flush_command(segment, run, 3, 2)
    commands = [[sys.executable, str(script)], whole]
    monkeypatch.setattr("supervisor.loop.flush.flush_command", lambda *_: commands.pop(0))
    flusher = Flusher(run, "m")
    flusher.segment = segment
    flusher.hear([(0, {"kind": "flush_due", "step": 3, "keep": 2})])  # type: ignore[list-item]
    list(flusher.tick(set(), True))
    until(lambda: flusher.process is not None and not is_running(flusher.process.pid))
    list(flusher.tick(set(flusher.fds()), True))

    assert not (run.checkpoints / begun).exists()
    assert saving.exists()

    list(flusher.finish())

    assert holds(run.checkpoints, 3)
    assert [path.name for path in run.checkpoints.glob(".*")] == []


def test_who_does_not_lead_sweeps_nothing(segment: Path, tmp_path: Path) -> None:
    """The leader's ranks, on other nodes, may be saving into the same folder."""
    snapshot_of(segment, 3)
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    folder, file = run.checkpoints / retention.temporary_name(9), run.checkpoints / ".latest.tmp-9999999-0"
    folder.mkdir()
    file.touch()
    flusher = Flusher(run, "m")
    flusher.segment = segment
    list(flusher.finish(sweep=False))

    assert holds(run.checkpoints, 3)
    assert set(run.checkpoints.glob(".*")) == {folder, file}


def test_what_is_newer_than_the_state_that_the_run_goes_on_from(segment: Path, tmp_path: Path) -> None:
    """A flushed step turned out to be damaged, and the run went on from an older one: the next snapshot counts, though
    it is older than what was flushed."""
    run = RunDir(tmp_path)
    flusher = Flusher(run, "m")
    flusher.segment = segment
    for step, start in ((9, 0), (7, 4)):
        flusher.hear([(0, {"kind": "resumed", "step": start})])  # type: ignore[list-item]
        snapshot_of(segment, step)
        list(flusher.finish())
        assert holds(run.checkpoints, step)
        retention.quarantine(run.checkpoints, step_name(step), "damaged", DISK)
        snapshots.remove(segment)
