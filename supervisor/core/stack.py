"""The places of the ranks: their stacks, and groups of ranks at the same place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_INSTALLED = ("site-packages/", "dist-packages/", "/lib/python3", "<frozen", "/trainer/rank/hooks/")
_EXCHANGES = ("torch/distributed/", "torch/nn/parallel/distributed.py")
_WRITES = "torch/distributed/checkpoint/"
"""Its work between its collectives is its own."""
_BACKWARD = "_engine_run_backward"
"""Inside the backward pass, DDP waits in C++ for its reduction."""


@dataclass(frozen=True, slots=True)
class Frame:
    function: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.function} ({self.file.rpartition('/')[2]}:{self.line})"

    @property
    def installed(self) -> bool:
        """Whether it belongs to a library, not to the script."""
        return any(part in self.file for part in _INSTALLED)


@dataclass(frozen=True, slots=True)
class Stack:
    """The main thread of one rank, or of a child of that rank (a DataLoader worker). Frames from the innermost out."""

    rank: int
    frames: tuple[Frame, ...] = ()
    wait: str = ""
    """What it waits for, as the kernel says: `read of /data/fifo`."""
    child: int | None = None
    """The child's pid."""

    @property
    def exchanges(self) -> bool:
        """Whether it waits for other ranks: a collective or a backward pass is above the script's own innermost
        frame."""
        for frame in self.frames:
            if _WRITES in frame.file:
                continue
            if frame.function == _BACKWARD or any(part in frame.file for part in _EXCHANGES):
                return True
            if not frame.installed:
                return False
        return False

    @property
    def place(self) -> str:
        """`wait (threading.py:320) in load (data.py:31), in read of /data/fifo`: the innermost frame, the script's own
        frame, and the wait."""
        if not self.frames:
            return f"in {self.wait}" if self.wait else "(no stack)"
        top = self.frames[0]
        own = next((frame for frame in self.frames if not frame.installed), top)
        text = str(top) if own == top else f"{top} in {own}"
        return f"{text}, in {self.wait}" if self.wait else text


@dataclass(frozen=True, slots=True)
class Stacks:
    """The stacks of all ranks that gave theirs, as of `at`."""

    at: float
    stacks: tuple[Stack, ...] = ()

    def of(self, rank: int) -> Stack | None:
        return next((s for s in self.stacks if s.rank == rank and s.child is None), None)

    def children(self, rank: int) -> list[Stack]:
        return [s for s in self.stacks if s.rank == rank and s.child is not None]


def grouped(stacks: Sequence[Stack]) -> list[tuple[list[int], Stack]]:
    """Tuples (ranks, their stack): the ranks that stand at the same place. The smallest group is first."""
    groups: dict[tuple[object, ...], list[Stack]] = {}
    for stack in stacks:
        if stack.child is None:
            groups.setdefault((stack.frames, stack.wait), []).append(stack)
    found = [(sorted(s.rank for s in group), group[0]) for group in groups.values()]
    return sorted(found, key=lambda each: (len(each[0]), each[0]))


def summary(stacks: Sequence[Stack]) -> list[str]:
    """One line for each group: `ranks 0, 2-7: all_reduce (distributed_c10d.py:2501) in step (train.py:30)`."""
    lines = [f"{named(ranks)}: {stack.place}" for ranks, stack in grouped(stacks)]
    return lines + [f"rank {s.rank}, its child {s.child}: {s.place}" for s in stacks if s.child is not None]


def named(ranks: Sequence[int]) -> str:
    """`rank 1`, `ranks 0, 2-7`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"
