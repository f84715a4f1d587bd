"""How far a run is, and what is told of it: each checkpoint once, whoever says so first, and however late the others
do."""

from __future__ import annotations

from typing import Any

from supervisor.core.actions import Emit
from supervisor.core.telling.news import hear
from supervisor.core.telling.progress import Progress, Trained, begin


class Told:
    """A progress, and the steps of the checkpoints that were told of it."""

    def __init__(self, told: list[int] | None = None, on_disk: tuple[int, ...] = ()) -> None:
        self.disk = {*on_disk}
        self.progress = begin(-1, self.disk, told)
        self.steps: list[int] = []

    def take(self, found: tuple[Progress, list[Emit]]) -> None:
        self.progress, events = found
        self.steps += [event.fields["step"] for event in events if event.event == "checkpoint_committed"]

    def saved(self, step: Any) -> None:
        self.take(hear(self.progress, [(0, {"kind": "checkpoint_saved", "mono": 1.0, "step": step})]))

    def flushed(self, step: int) -> None:
        self.take(self.progress.flushed({"step": step, "seconds": 0.1}))

    def scan(self, final: bool = True) -> None:
        self.take(self.progress.scanned(max(self.disk, default=-1), final))


def test_a_save_that_is_told_late() -> None:
    """The ranks' own save of step 200 is heard of after the flush of 202."""
    told = Told()
    told.flushed(202)
    told.saved(200)
    assert told.steps == [202, 200] and told.progress.checkpoint == 202


def test_a_checkpoint_that_a_scan_has_found() -> None:
    """Its rank, or the flush, says so afterwards: nothing more is told, until it is made anew."""
    told = Told()
    told.disk = {10}
    told.scan(final=False)
    assert told.steps == []
    told.scan(final=False)
    assert told.steps == [10]
    told.saved(10)
    told.disk = {20}
    told.scan()
    told.flushed(20)
    assert told.steps == [10, 20]

    told.disk = set()
    told.scan()
    assert told.progress.checkpoint == -1
    told.disk = {20}
    told.flushed(20)
    told.scan()
    told.saved(-1)
    assert told.steps == [10, 20, 20]


def test_what_a_dead_supervisor_has_told() -> None:
    """It has told of 10 and not of 20 and 30; the notes of all three are still there."""
    told = Told(told=[10], on_disk=(10, 20, 30))
    assert told.progress.checkpoint == 10
    told.take(told.progress.caught_up())
    assert told.progress.checkpoint == 30
    for step in (10, 20, 30, 40):
        told.saved(step)
    assert told.steps == [20, 30, 40]


def test_steps() -> None:
    """What is lost is counted from where the attempt began; a step that nothing places is none of the run's."""
    progress, first = Progress(high_step=50).trained(1, Trained(31, start=30, at=1.0))
    assert [(e.event, e.fields["lost_steps"], e.once) for e in first] == [("first_step", 20, "first_step")]
    assert progress.high_step == 50

    progress, events = progress.trained(1, Trained(50, start=30, at=1.0))
    assert [event.event for event in events] == ["first_step", "caught_up"]
    progress, _ = progress.trained(1, Trained(51, start=30, at=1.0))
    assert progress.step == 51

    progress, [event] = progress.trained(2, Trained(-1, start=None, at=1.0))
    assert (progress.step, progress.high_step) == (-1, 51)
    assert (event.fields["step"], event.fields["lost_steps"]) == (-1, -1)
