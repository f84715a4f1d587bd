"""A process of the script becomes a rank when there is evidence: it joins a process group, or it steps an optimizer. A
DataLoader's worker does neither, so it is not a rank.

A process that torchrun has started is a rank from the start. A process that the script starts (torch.multiprocessing,
Lightning's launcher, a subprocess) has our hooks: forks inherit them, and other Pythons find startup/sitecustomize.py.
Its number is its rank in the process group, or the first free one. The script gives up its own number, unless it trains
itself.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping
from typing import Any

from ..rundir.codes import Doing, Phase
from ..rundir.environment import Supervised, supervised
from ..rundir.layout import SCRIPT
from ..rundir.records.beats import Role, claim
from . import output, parking
from . import progress as _progress
from .exceptions import without_our_frames
from .hooks import adapters, bars, processes
from .hooks.steps import watch_torch
from .journal import saves
from .journal.journal import Begun
from .preload import rank_zero, script_variables
from .reporter import Reporter
from .trackers import follow as trackers

_MOST_LOADED = 100


class Member:
    """Passes the news of the hooks to this process's Reporter, as soon as there is one."""

    def __init__(self, place: Supervised, parked: bool = False) -> None:
        """`parked`: it is a rank of a standby, until begin()."""
        self._place = place
        self._reporter: Reporter | None = None
        self._parked = parked
        self._grouped = False
        self._barred = False
        """Another living process has its number. It may be a helper of that process, with its own group."""
        self._loaded: list[tuple[str, BaseException | None]] = []
        """Loads from the time before it was a rank."""

    def begin(self, place: Supervised, reporter: Reporter) -> None:
        """It is a rank of the attempt at `place` from now on."""
        self._place, self._reporter, self._parked = place, reporter, False
        saves.wake(self, place.saving)
        if self._grouped:
            reporter.grouped()
        for path, error in self._loaded:
            reporter.loaded(path, error)
        self._loaded.clear()

    def _not_yet(self, what: str) -> None:
        """A rank of a standby must not do that."""
        if self._parked and (waiting := parking.current()) is not None:
            waiting.end(f"the program {what} before Checkpointer.restore()")

    def hooked(self, count: int, restored: int | None, optimizer: Any) -> None:
        """An optimizer has stepped in this process."""
        self._not_yet("steps an optimizer")
        reporter = self._reporter
        if reporter is None or reporter.displaced:
            rank = _rank_in_group()
            reporter = self._join(rank, Role.SPAWNED if rank is None else Role.SPAWNED | Role.GROUPED)
        if reporter is not None:
            reporter.hooked(count, restored, optimizer)

    def grouped(self, rank: int) -> None:
        """This process is about to join a group, in which it is `rank`."""
        self._grouped = True
        reporter = self._reporter
        if (reporter is None or reporter.displaced) and not self._parked:
            reporter = self._join(rank, Role.SPAWNED | Role.GROUPED)
        if reporter is not None:
            reporter.grouped()

    def save_begun(self, path: str | None, by: str, about: Mapping[str, Any]) -> Begun | None:
        self._not_yet(f"saves {path or 'something'}")
        # If its ranks have its number, the script does not know their step.
        reporter = self._reporter
        return None if reporter is None or reporter.displaced else reporter.save_begun(path, by, about)

    def beside(self, folder: str) -> None:
        if self._reporter is not None:
            self._reporter.journal.beside(folder)

    def staged(self, path: str, still: bool) -> None:
        if self._reporter is not None:
            self._reporter.journal.staged(path, still)

    def torn(self, path: str, why: str, begun: Begun | None) -> None:
        if self._reporter is not None:
            self._reporter.torn(path, why, begun)

    def save_ended(self, begun: Begun | None, error: BaseException | None) -> None:
        if self._reporter is not None and begun is not None:
            self._reporter.save_ended(begun, error)

    def loaded(self, path: str, error: BaseException | None) -> None:
        if self._reporter is not None:
            self._reporter.loaded(path, error)
        elif len(self._loaded) < _MOST_LOADED:
            self._loaded.append((path, error))
            if self._parked and (waiting := parking.current()) is not None:
                waiting.loaded(path)

    def hooked_backward(self, entered: bool) -> None:
        if self._reporter is not None:
            self._reporter.hooked_backward(entered)

    def now(self, doing: Doing) -> None:
        if self._reporter is not None:
            self._reporter.now(doing)

    def failed(self, error: BaseException, exit_code: int) -> None:
        if self._parked:
            self._not_yet(f"ends with {type(error).__name__} ({' '.join(str(error).split())[:200]})")
        if self._reporter is not None:
            self._reporter.failed(error, exit_code)

    def phase(self, phase: Phase) -> None:
        self._not_yet("ends")
        if self._reporter is not None:
            self._reporter.phase(phase)

    def _join(self, rank: int | None, role: Role) -> Reporter | None:
        if self._barred or not self._place.children:
            return self._reporter
        try:
            beats = claim(self._place.attempt.beats, rank, os.getpid(), role)
        except (OSError, ValueError):
            beats = None
        if beats is None:
            self._barred = True
            return self._reporter
        attempt = self._place.attempt
        output.part(attempt.rank_log(SCRIPT), attempt.rank_log(beats.rank))
        self._reporter = Reporter(self._place, beats.rank, beats)
        _progress.install(self._reporter)
        for path, error in self._loaded:
            self._reporter.loaded(path, error)
        self._loaded.clear()
        return self._reporter

    def forked(self) -> None:
        """In a fork: it is not the rank that its parent is."""
        self._reporter, self._barred, self._parked = None, False, False
        self._loaded.clear()
        _progress.install(_progress.Progress())
        if self._place.children:
            saves.wake(self, self._place.saving)


def _rank_in_group() -> int | None:
    """This process's rank if it is in a process group, else None."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    rank: int = dist.get_rank()
    return rank


def hook(member: Member, place: Supervised) -> None:
    """`member` is told of torch's steps and groups in this process and in its forks."""
    rank_zero.settle()
    script_variables.follow()
    watch_torch(member)
    bars.follow()
    saves.install()
    saves.wake(member, place.saving)
    # This hook comes after the hook of the saves, which is off in a fork until it is turned on.
    os.register_at_fork(after_in_child=member.forked)
    processes.follow(member, place)


def arrive() -> None:
    """Called in a Python that a rank, or a process of a rank, has started, and that is about to import torch."""
    place = supervised()
    if place is None or not place.children:
        return
    member = Member(place)
    hook(member, place)
    adapters.follow(place)
    trackers.follow(place)
    told = sys.excepthook

    def excepthook(kind: Any, error: Any, trace: Any) -> None:
        member.failed(error, 1)
        without_our_frames(error)
        told(kind, error, error.__traceback__)

    sys.excepthook = excepthook
    atexit.register(member.phase, Phase.TEARDOWN)
