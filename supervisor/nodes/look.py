"""A look from outside at where the ranks of this node stand, or where they spend their time, for people.

It takes seconds, so it has a thread of its own. It costs the ranks next to nothing, and decides nothing.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

from supervisor.attempt import profiler
from supervisor.attempt.stacks import observed
from supervisor.core.stack import Stack
from supervisor.errors import Refusal
from supervisor.nodes.inbox import Inbox
from supervisor.process.proctree import Process


class Answer(msgspec.Struct, frozen=True, tag=True):
    """What was seen."""

    ask: str
    """Who has asked for it."""
    stacks: list[Stack] = []
    samples: dict[int, dict[str, int]] = {}
    """By rank: how many samples were at each place."""
    problem: str = ""
    """Why there are no samples."""
    silent: list[int] = []
    """The nodes that have not answered."""


class Eyes:
    """The looks of one supervisor."""

    def __init__(self) -> None:
        self._inbox: Inbox[Answer] = Inbox()

    @property
    def fd(self) -> int:
        """Readable when take() has something."""
        return self._inbox.fd

    def take(self) -> list[Answer]:
        """The answers since the last call."""
        return self._inbox.take()

    def look(self, ask: str, pids: Mapping[int, int], folder: Path, seconds: float) -> None:
        """Begins a look at these ranks. `seconds`: for so long; 0: once. `folder` is that of the attempt's stacks."""
        work = functools.partial(_looked, ask, dict(pids), folder, seconds)
        threading.Thread(target=self._put, args=(work, ask), name="look", daemon=True).start()

    def _put(self, work: Callable[[], Answer], ask: str) -> None:
        try:
            answer = work()
        except (OSError, Refusal, RuntimeError) as error:
            answer = Answer(ask, problem=str(error))
        # The supervisor may have ended meanwhile.
        with contextlib.suppress(OSError):
            self._inbox.put(answer)


def _looked(ask: str, pids: dict[int, int], folder: Path, seconds: float) -> Answer:
    if not pids:
        return Answer(ask)
    if seconds:
        found = profiler.profile(pids, seconds)
        return Answer(ask, samples={rank: dict(each) for rank, each in found.samples.items()}, problem=found.problem)
    with ExitStack() as held:
        ranks = {}
        for rank, pid in pids.items():
            with contextlib.suppress(ProcessLookupError):
                ranks[rank] = process = Process(pid)
                held.callback(process.close)
        return Answer(ask, stacks=list(observed(ranks, folder).stacks))
