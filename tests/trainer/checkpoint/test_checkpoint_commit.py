"""A save that is cut anywhere leaves the old checkpoint or the new one, whole; a save that fails leaves no trace."""

from __future__ import annotations

import errno
import shutil
import threading
from pathlib import Path

import pytest
import torch

from tests.support.disks import CrashingDisk, Cut, FullDisk
from tests.support.jobs import holds, on_ranks, state_of, write
from trainer.checkpoint.disk import retention, store
from trainer.checkpoint.disk import save as save_module
from trainer.checkpoint.disk.restore import Tiers, restore
from trainer.checkpoint.disk.save import Order, save
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.state import capture_rank
from trainer.rundir.files.durable import DISK, Disk
from trainer.rundir.layout import committed_steps, step_name


def _two(folder: Path) -> Path:
    write(folder, 1)
    write(folder, 2)
    return folder


def _calls(tmp_path: Path, keep: int) -> int:
    disk = CrashingDisk()
    write(_two(tmp_path / "count"), 3, disk, keep)
    return disk.calls


def _newest(folder: Path) -> int:
    found = store.newest_good(folder)
    assert found is not None, "no checkpoint is left"
    assert holds(folder, found.step)
    return found.step


def test_every_death_leaves_old_or_new(tmp_path: Path) -> None:
    """The process dies at any call of a save that also prunes: the newest checkpoint is whole, and a restore finds it
    and sweeps up what the death left."""
    origin = _two(tmp_path / "origin")
    for cut in range(_calls(tmp_path, keep=2)):
        folder = tmp_path / f"cut-{cut}"
        shutil.copytree(origin, folder)
        with pytest.raises(Cut):
            write(folder, 3, CrashingDisk(cut), keep=2)

        newest = _newest(folder)
        loaded = restore(Tiers(folder), "auto", Ranks(), DISK)
        assert loaded is not None
        assert loaded.manifest.step == newest
        assert newest in (2, 3)
        assert not list(folder.glob(".step-*"))
        assert not (folder / "quarantine").exists()
        assert write(folder, 4).error is None


def test_what_seals_a_checkpoint_comes_before_it(tmp_path: Path) -> None:
    """`seal` runs before the commit; if it fails, so does the save, and there is no checkpoint."""
    seen: list[list[int]] = []

    def seal() -> None:
        seen.append(committed_steps(tmp_path))
        if len(seen) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    outcomes = [
        save(Order(tmp_path, step, pack(state_of(step)), capture_rank(0), seal=seal), Ranks(), DISK) for step in (1, 2)
    ]

    assert [outcome.error for outcome in outcomes] == [None, "[Errno 28] No space left on device"]
    assert seen == [[], [1]]
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_full_disk_at_every_call(tmp_path: Path) -> None:
    """No space at any call: the save fails with the reason, or has committed; older checkpoints and `latest` are as
    they were, and no temporary is left."""
    calls = _calls(tmp_path, keep=3)
    for full in range(calls):
        folder = _two(tmp_path / f"full-{full}")
        disk = FullDisk(full)
        outcome = save(Order(folder, 3, pack(state_of(3)), capture_rank(0)), Ranks(), disk)

        if outcome.error is None:
            assert _newest(folder) == 3
            continue
        assert "No space left" in outcome.error
        assert store.read_latest(folder) == 2
        assert holds(folder, 2)
        assert not list(folder.glob(".step-*"))


def test_too_little_room_is_known_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room for this checkpoint: the save fails before it writes a byte, and says both figures."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    folder = tmp_path / "checkpoints"
    outcome = write(folder, 1)

    assert "1000" in (outcome.error or "")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_rank_fails_all_ranks_know(tmp_path: Path, failing: int) -> None:
    """A full disk under one rank of three: no checkpoint, no temporary, the same reason everywhere, the next save
    works."""

    class Full(Disk):
        def write(self, fd: int, path: Path, chunk: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def attempt(ranks: Ranks) -> object:
        return write(tmp_path, 2, Full() if ranks.rank == failing else DISK, ranks=ranks).error

    on_ranks(3, lambda ranks: write(tmp_path, 1, ranks=ranks))
    errors = on_ranks(3, attempt)

    assert errors == [f"rank {failing}: [Errno 28] No space left on device"] * 3
    assert store.read_latest(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-00000001"]
    assert on_ranks(3, lambda ranks: write(tmp_path, 2, ranks=ranks).error) == [None] * 3
    assert holds(tmp_path, 2)


def test_saving_a_step_again_changes_nothing(tmp_path: Path) -> None:
    """A step that has a whole checkpoint is not written twice; a damaged one is set aside and written anew."""
    write(tmp_path, 1)
    before = (tmp_path / "step-00000001" / "manifest.json").stat().st_mtime_ns
    again = write(tmp_path, 1)

    assert again.existed
    assert (tmp_path / "step-00000001" / "manifest.json").stat().st_mtime_ns == before

    (tmp_path / "step-00000001" / "rank0.safetensors").write_bytes(b"")
    assert write(tmp_path, 1).error is None
    assert holds(tmp_path, 1)
    assert (tmp_path / "quarantine" / "step-00000001-1").is_dir()


def test_prune_keeps_good_ones(tmp_path: Path) -> None:
    """Retention counts whole checkpoints only, keeps at least two of them, and never what `latest` names."""
    for step in (1, 2, 3, 4):
        write(tmp_path, step, keep=9)
    (tmp_path / "step-00000004" / "rank0.safetensors").write_bytes(b"")

    assert retention.prune(tmp_path, 1, DISK) == [1]
    assert committed_steps(tmp_path) == [2, 3, 4]

    (tmp_path / "latest").write_text("step-00000002\n")
    write(tmp_path / "more", 9)
    for step in (5, 6):
        save(Order(tmp_path, step, pack(state_of(step)), capture_rank(0)), Ranks(), DISK)

    assert retention.prune(tmp_path, 2, DISK) == [3]
    assert committed_steps(tmp_path) == [2, 4, 5, 6]


def _no_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize("where", ["its part", "the commit"])
def test_no_memory_for_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """One rank of two has none for its part, or rank 0 for the commit: the save has failed on both, which say why;
    nothing of it is left, and the next one works."""

    def bytes_of(tensor: torch.Tensor) -> tuple[torch.Tensor, memoryview]:
        if threading.current_thread() is failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(tensor)

    def body(ranks: Ranks) -> object:
        nonlocal failing
        if ranks.rank == 1 and where == "its part":
            failing = threading.current_thread()
        seal = _no_memory if where == "the commit" else lambda: None
        state = pack(state_of(2)), capture_rank(ranks.rank)
        return save(Order(tmp_path, 2, *state, seal=seal), ranks, DISK).error

    write(tmp_path, 1)
    whole, failing = save_module.bytes_of, threading.main_thread()
    monkeypatch.setattr(save_module, "bytes_of", bytes_of)
    error = "rank 1: OutOfMemoryError: CUDA out of memory" if where == "its part" else "MemoryError"
    assert on_ranks(2, body) == [error] * 2
    assert [path.name for path in tmp_path.glob("*step-*")] == [step_name(1)]

    monkeypatch.undo()
    assert write(tmp_path, 2).error is None
    assert holds(tmp_path, 2)
