"""The progress that a rank reports, and the places where requested faults strike. Without a supervisor it does
nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..rundir.codes import Doing, Phase
from ..rundir.files.durable import DISK, Disk
from ..rundir.records.beats import BeatWriter, Source
from ..rundir.records.notes import NoteWriter


@dataclass(frozen=True, slots=True)
class Position:
    """The position of a program. Steps are true steps of the run."""

    began: int | None
    """The step from which this process resumed. None if nothing tells it."""
    done: int
    """Finished steps. They are counted from the start of this process if `began` is None."""
    here: int
    """The number of these that this process has made."""


class Progress:
    """The null object: a process without a supervisor may call all of this, at no cost."""

    def __init__(self) -> None:
        self.note = NoteWriter(None)
        self.disk: Disk = DISK
        """The disk through which checkpoints are written. An `enospc` fault replaces it for one save."""
        self.data_step = -1
        """The data index of the loop, or -1 if the loop does not say."""
        self.before_saves: list[Callable[[], object]] = []
        """They are called when the program begins a save of its own. They raise nothing."""
        self.training = 0
        """The number of the framework's training that the program is in, of all that it calls. 0: not known."""

    def step(self, done: int, optimizer: Any = None) -> None:
        """`done` steps of the loop are finished. Call it once a step, after the optimizer's step."""

    def counted(self, done: int, optimizer: Any = None) -> None:
        """`done` steps of the run are finished. Nobody reports what the loop does between two steps (an evaluation, an
        upload), so its silence is judged as that of a loop that reports nothing."""

    def told(self, total: int | None = None, loss: float | None = None, step: int | None = None) -> None:
        """The program tells people how many steps it will have done at its end, and the loss after `step` steps (None:
        after the last one). Cheap enough for every step: it writes to memory only."""

    def now(self, doing: Doing) -> None:
        """People see that this rank does that. NONE: what it did is over."""

    def phase(self, phase: Phase) -> None:
        """This rank is in `phase` until it reports another phase, or finishes a step."""

    def failed(self, error: BaseException, exit_code: int) -> None:
        """This rank is about to exit with `exit_code` because of `error`. A supervisor can quote the error."""

    def resume_at(self, step: int) -> None:
        """This rank has restored the state after `step` steps and goes on from there."""

    def position(self) -> Position | None:
        """Where the program is. None while nothing tells it."""
        return None

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """The rank is in `phase` inside the block, in TRAIN after it."""
        self.phase(phase)
        try:
            yield
        finally:
            self.phase(Phase.TRAIN)


_current = Progress()


def progress() -> Progress:
    """The Progress of this process."""
    return _current


def install(reporter: Progress) -> None:
    """progress() returns `reporter` from now on. The worker bootstrap calls this."""
    global _current
    reporter.before_saves += _current.before_saves
    reporter.training = _current.training
    _current = reporter


__all__ = ["BeatWriter", "Phase", "Position", "Progress", "Source", "install", "progress"]
