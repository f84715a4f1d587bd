"""What a rank says about its progress, and where a fault asked for catches it. Without a supervisor it does nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..rundir.codes import Phase
from ..rundir.files.durable import DISK, Disk
from ..rundir.records.beats import BeatWriter, Source
from ..rundir.records.notes import NoteWriter


class Progress:
    """The null object: a process that nobody supervises may call all of this, at no cost."""

    def __init__(self) -> None:
        self.note = NoteWriter(None)
        self.disk: Disk = DISK
        """The disk that checkpoints are to be written through; an `enospc` fault swaps it for one save."""
        self.data_step = -1
        """The index of the data that the loop is at, or -1 where it does not say."""

    def step(self, done: int, optimizer: Any = None) -> None:
        """`done` steps of the loop are finished. Call it once a step, after the optimizer's."""

    def phase(self, phase: Phase) -> None:
        """This rank is in `phase` until it says another, or finishes a step."""

    def failed(self, error: BaseException, exit_code: int) -> None:
        """This rank is about to exit with `exit_code` because of `error`, which a supervisor can quote."""

    def resume_at(self, step: int) -> None:
        """This rank has restored the state after `step` steps and goes on from there."""

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """`phase` holds inside, TRAIN after it."""
        self.phase(phase)
        try:
            yield
        finally:
            self.phase(Phase.TRAIN)


_current = Progress()


def progress() -> Progress:
    """This process's own."""
    return _current


def install(reporter: Progress) -> None:
    """`reporter` is what progress() gives from now on; the worker bootstrap calls it."""
    global _current
    _current = reporter


__all__ = ["BeatWriter", "Phase", "Progress", "Source", "install", "progress"]
