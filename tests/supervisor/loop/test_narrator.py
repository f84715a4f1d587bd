"""What the narrator makes of news: each checkpoint is told once, whoever says so first, and however late the others do."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from supervisor.loop.narrator import Narrator
from supervisor.reading.events_file import read_events
from supervisor.run.events import EventLog
from trainer.rundir.layout import RunDir, step_name


class Told:
    """A narrator, and the steps of the checkpoints that it has told."""

    def __init__(self, folder: Path, told: list[int] | None = None, on_disk: tuple[int, ...] = ()) -> None:
        self.run = RunDir(folder / "run")
        self.run.path.mkdir()
        self.commit(*on_disk)
        self.log = EventLog(self.run, "gpt")
        self.narrator = Narrator(self.run, self.log, -1, told)
        self._mono, self._now = itertools.count(), itertools.count(0, 100)

    def commit(self, *steps: int) -> None:
        for step in steps:
            path = self.run.checkpoints / step_name(step)
            path.mkdir(parents=True)
            (path / "manifest.json").write_text("{}")

    def saved(self, step: Any) -> None:
        self.narrator.hear([(0, {"kind": "checkpoint_saved", "mono": float(next(self._mono)), "step": step})])

    def scan(self) -> None:
        self.narrator.scan(float(next(self._now)), final=True)

    def steps(self) -> list[int]:
        return [e["step"] for e in read_events(self.run.events)[0] if e["msg"] == "checkpoint_committed"]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


def test_a_save_that_is_told_late(told: Told) -> None:
    """The ranks' own save of step 200 is heard of after the flush of 202."""
    told.narrator.flushed({"step": 202, "seconds": 0.1})
    told.saved(200)
    assert told.steps() == [202, 200] and told.narrator.checkpoint == 202


def test_a_checkpoint_that_a_scan_has_found(told: Told) -> None:
    """Its rank, or the flush, says so afterwards: nothing more is told, until it is made anew."""
    told.commit(10)
    told.scan()
    told.saved(10)
    told.commit(20)
    told.scan()
    told.narrator.flushed({"step": 20, "seconds": 0.1})
    assert told.steps() == [10, 20]

    (told.run.checkpoints / step_name(20)).rename(told.run.path / "aside")
    told.scan()
    told.saved(20)
    told.saved(-1)
    assert told.steps() == [10, 20, 20]


def test_what_a_dead_supervisor_has_told(tmp_path: Path) -> None:
    """It has told of 10 and not of 20 and 30; the notes of all three are still there."""
    told = Told(tmp_path, told=[10], on_disk=(10, 20, 30))
    told.narrator.catch_up()
    for step in (10, 20, 30, 40):
        told.saved(step)
    assert told.steps() == [20, 30, 40]
