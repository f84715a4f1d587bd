"""Folders that an attempt was saving into when it ended: which are set aside, and which stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from supervisor.core.own_saves.saves import Saves, hear
from supervisor.run.torn import all_set_aside, clear, restore
from trainer.rundir.layout import RunDir


def begun(path: Path, ranks: int = 2) -> Saves:
    """What the journals say of a save into the folder `path` that rank 1 has not ended."""
    saves = Saves()
    for rank in range(ranks):
        line = {"kind": "save_begun", "n": 0, "path": str(path), "step": 5, "ranks": ranks, "mono": 1.0}
        saves = hear(saves, rank, line)
    return hear(saves, 0, {"kind": "save_done", "n": 0, "path": str(path), "step": 5, "ranks": ranks, "mono": 2.0})


def test_half_a_folder_is_set_aside_and_comes_back(tmp_path: Path) -> None:
    """Under a free name, recorded; it comes back unless something else is there by now."""
    run, folder = RunDir(tmp_path / "run"), tmp_path / "out" / "checkpoint-5"
    run.path.mkdir()
    for _ in range(2):
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(b"half")
        (outcome,) = clear(run, 3, begun(folder), [])
        assert not folder.exists() and (Path(outcome.moved_to) / "model").read_bytes() == b"half"
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        ".torn-checkpoint-5-a3",
        ".torn-checkpoint-5-a3.2",
    ]
    assert clear(run, 3, begun(folder), []) == []

    first, second = all_set_aside(run)
    restore(first)
    assert folder.is_dir()
    with pytest.raises(FileExistsError):
        restore(second)
    assert all_set_aside(run) == [second]


def test_what_stays(tmp_path: Path) -> None:
    """What holds the run, the folder that the script runs in, or other saves; and what is whole."""
    run = RunDir(tmp_path / "out" / "run")
    run.path.mkdir(parents=True)
    below = {"kind": "save_begun", "n": 1, "path": str(tmp_path / "a" / "b" / "c"), "step": 5, "ranks": 1}
    for name, saves, kept in (
        ("out", begun(tmp_path / "out"), []),
        ("work", begun(tmp_path / "work"), [str(tmp_path / "work" / "here")]),
        ("a", hear(begun(tmp_path / "a"), 0, below), []),
    ):
        (tmp_path / name).mkdir(exist_ok=True)
        outcomes = {outcome.path: outcome for outcome in clear(run, 0, saves, kept)}
        assert outcomes[str(tmp_path / name)].problem and (tmp_path / name).is_dir()
    assert all_set_aside(run) == []

    whole = begun(tmp_path / "work", ranks=1)
    assert clear(run, 0, whole, []) == [] and (tmp_path / "work").is_dir()

    # A save that had begun, and had not touched the checkpoint that is there.
    for path in (tmp_path / "work" / ".metadata", tmp_path / "work"):
        path.touch()
        os.utime(path, (1_000_000, 1_000_000))
    now = {
        "kind": "save_begun",
        "n": 9,
        "path": str(tmp_path / "work"),
        "step": 5,
        "ranks": 2,
        "mono": time.monotonic(),
    }
    assert clear(run, 0, hear(Saves(), 0, now), []) == []
    (tmp_path / "work" / "__0_0.distcp").touch()
    assert len(clear(run, 0, hear(Saves(), 0, now), [])) == 1


def test_a_disk_that_takes_no_record(tmp_path: Path) -> None:
    """What could not be given back is not moved, and the outcome says why."""
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    (outcome,) = clear(RunDir(tmp_path / "gone"), 0, begun(folder), [])
    assert folder.is_dir() and "No such file" in outcome.problem
