"""Memory and disk together: which is used when, how a snapshot becomes a checkpoint, and what without shared memory."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.support.jobs import on_ranks, same
from tests.support.training import SAVE, Here, Notes, train, training, uncosted
from trainer.checkpoint import Checkpointer, CheckpointError, NoUsableCheckpoint
from trainer.checkpoint.disk.flush import flush
from trainer.checkpoint.disk.restore import load
from trainer.checkpoint.memory import memory, snapshots
from trainer.checkpoint.memory.tier import Wish
from trainer.rundir.layout import committed_steps, step_name
from trainer.rundir.machine import shm


def test_other_world_sizes(here: Here, tmp_path: Path) -> None:
    """Two ranks, then one, then three, from memory: the state goes on, and what the larger world left is removed."""
    whole = on_ranks(1, lambda ranks: train(ranks, range(9), snapshot_every=None, directory=tmp_path / "other"))[0][1]
    for attempt, (world, begin, end) in enumerate(((2, 0, 3), (1, 3, 6), (3, 6, 9))):
        here.attempt(attempt, tmp_path / "shm")
        results = on_ranks(world, lambda ranks, b=begin, e=end: train(ranks, range(b, e)))  # type: ignore[misc]
        assert [start for start, _ in results] == [begin] * world
        assert shm.ranks_in(here.segment) == list(range(world))

    assert all(same(weight, whole) for _, weight in results)


def test_shared_memory_too_small(
    here: Here, notes: Notes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rank of two has no room: one warning that says what to do, then checkpoints on disk by both, the first one at
    once, and nothing is left in shared memory."""
    real = os.posix_fallocate

    def allocate(fd: int, offset: int, size: int) -> None:
        if size > 4096 and "rank1" in Path(f"/proc/self/fd/{fd}").readlink().name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate)

    def body(ranks: Any) -> Any:
        model = nn.Linear(3, 3)
        ckpt = Checkpointer(model=model, every=4, snapshot_every=1)
        ckpt._ranks = ranks
        ckpt.restore()
        for step in range(1, 9):
            if ckpt._tier:
                ckpt._tier._memory.wait()
            ckpt.step(step, Wish(*ranks.any(*ckpt.wish())))
        return ckpt._tier

    assert on_ranks(2, body) == [None, None]
    assert committed_steps(here.checkpoints) == [2, 4, 8]
    warnings = notes.warnings()
    assert len(warnings) == 1
    assert "too small" in warnings[0]
    assert "--shm-size=" in warnings[0]
    assert len(uncosted(capsys.readouterr().err.splitlines())) == 1
    assert list(here.segment.iterdir()) == []


@pytest.mark.parametrize("what", ["supervise-m", "supervise-m/rank1", "supervise-m/rank0.a"])
def test_somebody_removes_what_is_in_shared_memory(here: Here, notes: Notes, what: str) -> None:
    """All of it, a board, or a buffer: the next snapshot finds out, a step goes to disk, and there are snapshots again,
    which all ranks have; with one warning. Of those that are removed over and over there are none any more: that step
    goes to disk, too."""

    def body(ranks: Any) -> Any:
        found = []

        def agreed(step: int) -> Wish:
            if ranks.rank == 0 and step in (4, 12, 16, 20):
                path = here.segment.parent / what
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if ranks.rank == 0:
                found.append(snapshots.newest_snapshot(here.segment))
            return Wish(*ranks.any(*Wish(snapshot=True, lost=ckpts[ranks.rank]._tier._memory.problem is not None)))

        model = nn.Linear(3, 3)
        ckpts[ranks.rank] = ckpt = Checkpointer(model=model, every=None, snapshot_every=1, keep=100)
        ckpt._ranks = ranks
        ckpt.restore()
        for step in range(1, 25):
            if ckpt._tier:
                ckpt._tier._memory.wait()
            ranks.exchange(None)
            ckpt.step(step, agreed(step) if ckpt._tier else Wish())
        return ckpt._tier, found

    ckpts: dict[int, Any] = {}
    (tier_0, found), (tier_1, _) = on_ranks(2, body)
    warnings = notes.warnings()
    assert len(warnings) == 4 and all("another program has removed" in text for text in warnings)
    assert (tier_0, tier_1) == (None, None) and list(here.segment.iterdir()) == []
    saved = committed_steps(here.checkpoints)
    # Begun anew right after each of the first three, and current until the next.
    removals = (4, 12, 16, 20)
    assert len(saved) == 4 and all(0 < step - removed <= 4 for step, removed in zip(saved, removals, strict=True))
    assert found[10] == 10


@pytest.mark.parametrize("refused", [False, True])
def test_no_step_is_lost_with_the_snapshots(here: Here, notes: Notes, refused: bool) -> None:
    """One rank can take no more of them: the next step is durable before they are removed. If the disk refuses it, they
    stay, and no pin."""

    def full(size: int, pin: int | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def body(ranks: Any) -> Any:
        ckpt = Checkpointer(model=nn.Linear(3, 3), every=1000, snapshot_every=1)
        ckpt._ranks = ranks
        ckpt.restore()
        for step in range(1, 7):
            if ckpt._tier:
                ckpt._tier._memory.wait()
                if step == 4 and ranks.rank == 1:
                    ckpt._tier._memory.segment.begin = full  # type: ignore[method-assign]
            if step == 4 and ranks.rank == 0 and refused:
                here.checkpoints.write_text("no folder")
            ranks.exchange(None)
            ckpt.step(step, Wish(*ranks.any(*ckpt.wish()._replace(save=step == 4))))
        return ckpt._tier, snapshots.newest_snapshot(here.segment)

    assert on_ranks(2, body) == [(None, 3 if refused else None)] * 2
    assert committed_steps(here.checkpoints) == ([] if refused else [5])
    assert not snapshots.any_pinned(snapshots.boards(here.segment).values())
    assert len(notes.warnings()) == 1


def _flushed(here: Here, notes: Notes) -> dict[str, Any]:
    fields = [fields for kind, fields in notes.kept if kind == "flush_due"][-1]
    return flush(here.segment, here.checkpoints, fields["step"], fields["keep"], None)


def test_a_due_save_is_a_flush(here: Here, notes: Notes) -> None:
    """At a due step all ranks pin their snapshot; the step after, rank 0 says so; the next one is pinned once those
    pins are gone. What is due meanwhile the ranks save themselves, and nothing else."""

    def body(ranks: Any) -> Any:
        flushed = []

        def agreed(step: int) -> Wish:
            if ranks.rank == 0 and step in (5, 9):
                flushed.append(_flushed(here, notes)["step"])
            return Wish(*ranks.any(*Wish(snapshot=True)))

        train(ranks, range(10), agreed, every=2, keep=10)
        return flushed

    assert on_ranks(2, body) == [[2, 6], []]
    assert [f["step"] for kind, f in notes.kept if kind == "flush_due"] == [2, 6]
    assert committed_steps(here.checkpoints) == [2, 4, 6, 8]
    assert [f["step"] for kind, f in notes.kept if kind == "checkpoint_saved"] == [4, 8]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_the_last_step_is_in_memory_when_the_disk_refuses_it(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its snapshot was left out at first, for another rank was late."""
    with training() as made:
        made.run(3)
        made.copied()
        with monkeypatch.context() as late:
            late.setattr(memory, "_LATE_S", 0.0)
            late.setattr(made.memory().segment, "begin", lambda size, pin: None)
            made.run(4)
            made.copied()
        assert snapshots.newest_snapshot(here.segment) == 3

        here.checkpoints.write_text("no folder")
        with pytest.raises(CheckpointError, match="step 4 could not be saved at the end"):
            made.ckpt.close()
        assert snapshots.newest_snapshot(here.segment) == 4


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_the_step_of_a_stop_is_in_memory_when_the_disk_refuses_it(here: Here) -> None:
    """Also right after a snapshot."""
    with training() as made:
        made.run(3)
        here.checkpoints.write_text("no folder")
        with pytest.raises(CheckpointError, match="step 4 could not be saved when asked to stop"):
            made.run(4, Wish(stop=True))
        assert snapshots.newest_snapshot(here.segment) == 4


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_a_flush_is_the_save(here: Here, tmp_path: Path) -> None:
    """A flushed snapshot and a direct save of the same step: the same state, and the rank's file byte for byte."""
    with training() as made:
        made.run(24)
        made.run(25, SAVE)
        made.copied()
        outcome = flush(here.segment, here.checkpoints, 25, 3, None)
        made.ckpt.directory = tmp_path / "direct"
        assert made.ckpt.save()

    name = step_name(25)
    assert outcome["step"] == 25
    assert outcome["bytes"] == (here.checkpoints / name / "rank0.safetensors").stat().st_size
    files = [(place / name / "rank0.safetensors").read_bytes() for place in (here.checkpoints, tmp_path / "direct")]
    assert files[0] == files[1]
    flushed, direct = (load(place / name, 0) for place in (here.checkpoints, tmp_path / "direct"))
    assert same((flushed.shared, flushed.own), (direct.shared, direct.own))
    assert (flushed.manifest.tensors, flushed.manifest.files) == (direct.manifest.tensors, direct.manifest.files)
    assert (flushed.manifest.run, flushed.manifest.attempt) == ("run", 0)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_which_tier_is_used(here: Here, notes: Notes, tmp_path: Path) -> None:
    """Memory if it is newer than any checkpoint, or a flush has made the newest one of it; else the disk, and then the
    snapshots are gone; `never` uses neither; `must` is content with a snapshot; what cannot be read is said, and the
    older state taken."""

    def resumed(**options: Any) -> tuple[int, str]:
        notes.kept.clear()
        with training(**options) as made:
            fields = next(f for kind, f in notes.kept if kind == "resumed")
            assert fields["step"] == made.start
            return made.start, fields["source"]

    with training() as made:
        made.run(3)
        made.ckpt.close()
        made.ckpt._saved = -1
    assert resumed() == (3, "disk")
    assert snapshots.newest_snapshot(here.segment) is None

    with training() as made:
        made.run(5)
    assert resumed(resume="must") == (5, "memory")
    shutil.copytree(here.checkpoints, before := tmp_path / "before")
    assert flush(here.segment, here.checkpoints, 5, 3, None)["step"] == 5
    # The same bytes are on the disk now, and those in memory are read sooner.
    assert resumed() == (5, "memory")
    shutil.rmtree(here.checkpoints)
    before.rename(here.checkpoints)
    record = snapshots.find(here.segment)
    assert record is not None
    with record.path(0).open("r+b") as file:
        file.write(b"\xff" * 8)
    assert resumed() == (3, "disk")
    warnings = notes.warnings()
    assert len(warnings) == 1
    assert "snapshot of step 5" in warnings[0]

    with training() as made:
        made.run(6)
    assert resumed(resume="never") == (0, "start")
    assert snapshots.newest_snapshot(here.segment) is None
    with pytest.raises(NoUsableCheckpoint):
        resumed(resume="must")


def test_a_snapshot_of_another_run_is_ignored(here: Here, notes: Notes) -> None:
    """Its sidecar names a run that is not this one: said, and passed over."""
    on_ranks(1, lambda ranks: train(ranks, range(2)))
    found = snapshots.find(here.segment)
    assert found is not None
    data = found.path(0).read_bytes()
    found.path(0).write_bytes(data.replace(b'"run":"run"', b'"run":"now"'))

    assert on_ranks(1, lambda ranks: train(ranks, range(2)))[0][0] == 0
    assert any("another run" in f.get("text", "") for _, f in notes.kept)


def test_without_a_supervisor_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves go to disk, as ever, and shared memory is not touched."""
    monkeypatch.setattr(shm, "ROOT", tmp_path / "shm")
    ckpt = Checkpointer(model=nn.Linear(2, 2), directory=tmp_path / "c", every=1, snapshot_every=1)
    ckpt.restore()
    ckpt.step(1)
    ckpt.close()

    assert committed_steps(tmp_path / "c") == [1]
    assert not (tmp_path / "shm").exists()
