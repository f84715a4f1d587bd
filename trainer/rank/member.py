"""A process of the script as a rank, from the moment on that there is evidence: it meets others for a process group, or it
steps an optimizer. A DataLoader's worker does neither, and is none.

What torchrun has started is a rank from the start. What the script starts itself (torch.multiprocessing, Lightning's
launcher, a subprocess) comes with our hooks: forks inherit them, and other Pythons find startup/sitecustomize.py. Its number
is that of its process group, or the first that is free. The script gives its own number up, unless it trains itself.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping
from typing import Any

from ..rundir.codes import Phase
from ..rundir.environment import Supervised, supervised
from ..rundir.layout import SCRIPT
from ..rundir.records.beats import Role, claim
from . import output
from . import progress as _progress
from .hooks import adapters, processes
from .hooks.steps import watch_torch
from .journal import saves
from .journal.journal import Begun
from .reporter import Reporter

_MOST_LOADED = 100


class Member:
    """What the hooks tell goes on to this process's Reporter, as soon as it has one."""

    def __init__(self, place: Supervised, reporter: Reporter | None = None) -> None:
        self._place, self._reporter = place, reporter
        self._barred = False
        """Its number is another living process's: it is a helper of that one, say, that has a group of its own."""
        self._loaded: list[tuple[str, BaseException | None]] = []
        """Before it was a rank."""

    def hooked(self, count: int, restored: int | None, optimizer: Any) -> None:
        """An optimizer has stepped here."""
        reporter = self._reporter
        if reporter is None or reporter.displaced:
            rank = _rank_in_group()
            reporter = self._join(rank, Role.SPAWNED if rank is None else Role.SPAWNED | Role.GROUPED)
        if reporter is not None:
            reporter.hooked(count, restored, optimizer)

    def grouped(self, rank: int) -> None:
        """This process is about to meet others, for a group in which it is `rank`."""
        reporter = self._reporter
        if reporter is None or reporter.displaced:
            reporter = self._join(rank, Role.SPAWNED | Role.GROUPED)
        if reporter is not None:
            reporter.grouped()

    def save_begun(self, path: str | None, by: str, about: Mapping[str, Any]) -> Begun | None:
        reporter = self._reporter
        # A script whose ranks have its number does not know at which step they are.
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

    def hooked_backward(self, entered: bool) -> None:
        if self._reporter is not None:
            self._reporter.hooked_backward(entered)

    def failed(self, error: BaseException, exit_code: int) -> None:
        if self._reporter is not None:
            self._reporter.failed(error, exit_code)

    def phase(self, phase: Phase) -> None:
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
        """In a fork: what the parent is, it is not."""
        self._reporter, self._barred = None, False
        self._loaded.clear()
        _progress.install(_progress.Progress())
        if self._place.children:
            saves.wake(self, self._place.saving)


def _rank_in_group() -> int | None:
    """This process's rank where it is in a process group."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    rank: int = dist.get_rank()
    return rank


def hook(member: Member, place: Supervised) -> None:
    """`member` hears what torch does in this process, and in those that it forks."""
    watch_torch(member)
    saves.install()
    saves.wake(member, place.saving)
    # After that of the saves, which sleep in a fork until they are told otherwise.
    os.register_at_fork(after_in_child=member.forked)
    processes.follow(member, place)


def arrive() -> None:
    """This Python was started by a rank, or by a process of one, and is about to import torch."""
    place = supervised()
    if place is None or not place.children:
        return
    member = Member(place)
    hook(member, place)
    adapters.follow(place)
    told = sys.excepthook

    def excepthook(kind: Any, error: Any, trace: Any) -> None:
        member.failed(error, 1)
        told(kind, error, trace)

    sys.excepthook = excepthook
    atexit.register(member.phase, Phase.TEARDOWN)
