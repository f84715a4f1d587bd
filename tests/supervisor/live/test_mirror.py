"""The beats of ranks on other nodes, in a file for people."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.live.mirror import Mirror, all_beats
from trainer.rundir.codes import Doing, Phase
from trainer.rundir.layout import RunDir
from trainer.rundir.records.beats import Beat, Role, Source

BEAT = Beat(
    *(2, 77, 12, Phase.TRAIN, 100.5, Source.LOOP, 3, 5, 0.25),
    **{
        "role": Role.GROUPED,
        "total": 40,
        "loss": 0.125,
        "loss_step": 11,
        "lr": 0.5,
        "doing": Doing.NONE,
        "since": 99.5,
    },
)


def test_what_was_put_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, by this node's clock, and the newest. Nothing is mapped: who writes to mapped memory of a disk that
    does not answer stops every thread of the process."""
    monkeypatch.delattr(mmap, "mmap")
    folder = RunDir(tmp_path).attempt(0)
    folder.path.mkdir(parents=True)
    mirror = Mirror.new(folder, 4)
    try:
        assert all_beats(folder) == []
        mirror.put([BEAT, replace(BEAT, rank=3, loss=None, loss_step=None, lr=None, total=None)], offset=2.0)
        mirror.put([replace(BEAT, rank=1, pid=78), replace(BEAT, rank=4)], offset=0.0)
        mirror.put([], offset=0.0)
    finally:
        mirror.close()

    ours = replace(BEAT, at=98.5, since=97.5)
    bare = replace(ours, rank=3, loss=None, loss_step=None, lr=None, total=None)
    assert all_beats(folder) == [replace(BEAT, rank=1, pid=78), ours, bare]
