"""Reads what hook/sitecustomize.py wrote: every optimizer step of every process of one side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from hook.sitecustomize import RECORD

HOOK = str(Path(__file__).resolve().parent / "hook")


@dataclass(frozen=True, slots=True)
class Step:
    """One step that a rank has finished."""

    at: float
    """CLOCK_MONOTONIC seconds."""
    rank: int
    pid: int
    done: int
    """Steps that the optimizer has done, those before a resume included."""


@dataclass
class StepLog:
    """The steps so far; more are read when it is asked."""

    path: Path
    steps: list[Step] = field(default_factory=list)
    newest: dict[int, Step] = field(default_factory=dict)
    """By rank, its last step."""

    def read(self) -> list[Step]:
        """What is new since the last call, in the order in which it was written."""
        try:
            with self.path.open("rb") as file:
                file.seek(len(self.steps) * RECORD.size)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = len(data) - len(data) % RECORD.size
        new = [Step(*fields) for fields in RECORD.iter_unpack(data[:whole])]
        self.steps += new
        # The process that waits makes a step to warm up, its optimizer's first. It does not train.
        trains = [step for step in new if step.done > 1 or step.rank not in self.newest]
        self.newest.update({step.rank: step for step in trains})
        return new

    def pids(self, nproc: int) -> dict[int, int] | None:
        """By rank, the process that stepped last; None while a rank has not stepped."""
        self.read()
        return {rank: step.pid for rank, step in self.newest.items()} if len(self.newest) == nproc else None

    def of(self, pids: Iterable[int]) -> list[Step]:
        """The steps of these processes."""
        wanted = set(pids)
        return [step for step in self.steps if step.pid in wanted]

    def first_after(self, old: Iterable[int], nproc: int, since: float = 0.0) -> list[Step] | None:
        """The first step after `since` of each rank's process that is none of `old`; None until every rank has made
        one. A process that waits makes a step to warm up, perhaps after `since`: its optimizer's first, where `old`
        had come further."""
        self.read()
        gone, found = set(old), dict[int, Step]()
        further = any(step.done > 1 for step in self.steps if step.pid in gone)
        for step in self.steps:
            if step.pid not in gone and step.at > since and not (further and step.done == 1):
                found.setdefault(step.rank, step)
        return [found[rank] for rank in sorted(found)] if len(found) == nproc else None


def trained(steps: list[Step], rank: int = 0) -> list[Step]:
    """The steps of one rank without those that a waiting group has made to warm up: the optimizer's first, in a process
    that went on from another one."""
    by_pid: dict[int, list[Step]] = {}
    for step in steps:
        if step.rank == rank:
            by_pid.setdefault(step.pid, []).append(step)
    first, *later = by_pid.values() if by_pid else [[]]
    warm = {id(own[0]) for own in later if own[0].done == 1 and (len(own) == 1 or own[1].done != 2)}
    return [step for own in (first, *later) for step in own if id(step) not in warm]


def intervals(steps: list[Step], rank: int = 0) -> list[float]:
    """Seconds between the finished steps of one rank, in the order of its steps."""
    times = [step.at for step in steps if step.rank == rank]
    return [later - earlier for earlier, later in pairwise(times)]
