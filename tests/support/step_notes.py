"""What the ranks of machine_trainer.py have noted, and what it proves: no two attempts at once, no step lost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Noted:
    """One rank of one attempt."""

    attempt: int
    host: str
    rank: int
    pid: int
    began: int
    """The step from which it went on."""
    world: int
    released: float
    """When it had restored that step."""
    steps: tuple[tuple[int, float], ...]
    """Each step that it has done, and when."""
    bits: str | None


def read(folder: Path, newest: bool = False) -> list[Noted]:
    """All ranks that have begun, or those of the newest attempt, in the order of attempts."""
    paths = [path for path in folder.iterdir() if path.stat().st_size] if folder.exists() else []
    last = max((int(path.name.partition(".")[0]) for path in paths), default=-1)
    found = []
    for path in paths:
        if newest and int(path.name.partition(".")[0]) < last:
            continue
        attempt, host, rank, pid = path.name.rsplit(".", 3)
        lines = [line.split() for line in path.read_text().split("\n")[:-1]]
        if not lines:
            continue
        steps = tuple((int(line[0]), float(line[1])) for line in lines[1:] if line[0] != "bits")
        bits = lines[-1][1] if lines[-1][0] == "bits" else None
        numbers = int(attempt), host, int(rank), int(pid)
        found.append(Noted(*numbers, int(lines[0][1]), int(lines[0][3]), float(lines[0][4]), steps, bits))
    return sorted(found, key=lambda noted: (noted.attempt, noted.rank, noted.released))


@dataclass(frozen=True)
class Change:
    """From one attempt that stepped to the next one that did."""

    attempts: tuple[int, int]
    still: float
    """Seconds between the last step of the one and the first of the other. Below 0 they were at work at once."""
    lost: int
    """Steps that all ranks of the one had done, and that the other did again."""
    skipped: int
    """Steps that no rank of the one had done, and that the other did not do."""


def changes(ranks: Sequence[Noted]) -> list[Change]:
    """Each change of attempt, in their order."""
    by_attempt: dict[int, list[Noted]] = {}
    for noted in ranks:
        if noted.steps:
            by_attempt.setdefault(noted.attempt, []).append(noted)
    found = []
    for (first, old), (second, new) in itertools.pairwise(sorted(by_attempt.items())):
        ended, began = max(n.steps[-1][1] for n in old), min(n.steps[0][1] for n in new)
        done, most, goes_on = min(n.steps[-1][0] for n in old), max(n.steps[-1][0] for n in old), new[0].began
        found.append(Change((first, second), began - ended, max(0, done - goes_on), max(0, goes_on - most)))
    return found


def newest(ranks: Sequence[Noted]) -> int:
    """The last step that somebody has noted; 0 if there is none."""
    return max((noted.steps[-1][0] for noted in ranks if noted.steps), default=0)
