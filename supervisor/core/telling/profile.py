"""Where ranks spend their time: samples of their main threads, counted by place. Pure.

A sampler's line is a stack from the outermost frame in, and the number of its samples:

    thread (4940): MainThread;<module> (/home/me/train.py:30);step (/home/me/train.py:12) 59
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from supervisor.core.stack import Frame, Stack

_MAIN = "MainThread"
_LINE = re.compile(r"^(?P<stack>.+) (?P<count>\d+)$")
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>.*):(?P<line>\d+)\)$")
OTHER = "elsewhere"


def counted(text: str) -> Counter[str]:
    """By place: the samples of the main thread."""
    found: Counter[str] = Counter()
    for match in filter(None, map(_LINE.match, text.splitlines())):
        thread, *outer = match["stack"].split(";")
        if _MAIN not in thread:
            continue
        frames = tuple(
            Frame(frame["function"], frame["file"], int(frame["line"]))
            for frame in map(_FRAME.match, reversed(outer))
            if frame is not None
        )
        found[_place(frames)] += int(match["count"])
    return found


def _place(frames: Sequence[Frame]) -> str:
    """`all_reduce (distributed_c10d.py) in step (train.py:30)`: the line of a library's function means nothing here."""
    if not frames:
        return OTHER
    top = frames[0]
    if not top.installed:
        return Stack(0, tuple(frames)).place
    own = next((frame for frame in frames if not frame.installed), None)
    where = f" in {own}" if own is not None else ""
    return f"{top.function} ({top.file.rpartition('/')[2]}){where}"


@dataclass(frozen=True, slots=True)
class Share:
    """The share of the samples of each rank at one place, from 0 to 1."""

    place: str
    shares: Mapping[int, float]

    @property
    def mean(self) -> float:
        return sum(self.shares.values()) / len(self.shares)


def shares(samples: Mapping[int, Counter[str]], most: int) -> list[Share]:
    """The `most` places with the largest shares, and one row for all others. Ranks without a sample are left out."""
    totals = {rank: sum(counts.values()) for rank, counts in samples.items() if counts}
    places = {place for counts in samples.values() for place in counts}
    rows = [Share(p, {rank: samples[rank][p] / total for rank, total in totals.items()}) for p in places]
    rows.sort(key=lambda row: (-row.mean, row.place))
    rest = rows[most:]
    if rest:
        rows[most:] = [Share(OTHER, {rank: sum(row.shares[rank] for row in rest) for rank in totals})]
    return rows
