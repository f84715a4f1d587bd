"""The activity of a silent rank, from samples of its stacks: whether it moves, and if not, what might still wake it.

The main thread is judged, because it steps. The targets of its wait are judged too: for a lock, the script's other
threads; for a child, its children. A tracker's or a loader's thread is not judged, nor is a DataLoader's worker without
work: no rank waits for their work.

    moving     the stack changes between samples: other frames, another line in a caller, a caller's variables
    python     one function runs, and nothing changes but its own line: `while True: pass`
    between    it holds the GIL in one line: a regex, or a loop that looks the same
    native     it uses the CPU without the GIL in one frame: a tokenizer's batch, faiss, eigh
    answered   idle in a wait that something outside may end: a socket, a child, a file, a timer, a thread of a library
    locked     idle, and nothing known can end it but the rank itself, or the other ranks
    met        it stands in a collective: it waits for other ranks, idle or busy
    disk       a disk or a file server keeps it (state D): no verdict by itself
    watched    a person looks at it with a debugger
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from supervisor.core.sample import Loop, Sample, Thread, Wait
from supervisor.core.words import Word

ENOUGH = 3
"""Samples that are needed for a judgement."""
_UNANSWERED = (Wait.LOCK, Wait.OTHER, Wait.UNKNOWN)
_DEBUGGERS = ("/pdb.py", "/bdb.py", "/debugpy/", "/pydevd", "/ipdb/", "/pudb/", "/code.py", "IPython/terminal/")
_HELD = 0.8
"""If a thread holds the GIL in this share of its samples, it counts as always holding it."""
_BUSY = 0.3
"""A process that uses this share of a CPU is not idle, whatever its main thread does."""


class Kind(Word):
    """The kinds in the table above."""

    MOVING = "moving"
    PYTHON = "python"
    BETWEEN = "between"
    NATIVE = "native"
    ANSWERED = "answered"
    LOCKED = "locked"
    MET = "met"
    DISK = "disk"
    WATCHED = "watched"


@dataclass(frozen=True, slots=True)
class Running:
    """The activity of one judged thread since the last change."""

    held: int = 0
    """Samples in which the thread held the GIL."""
    ran: int = 0
    answered: int = 0
    """Samples in which it stood in a wait that something outside may end."""
    lines: frozenset[int] = frozenset()
    counts: bool = False
    """The variables of its innermost function have changed."""


@dataclass(frozen=True, slots=True)
class Motion:
    """The memory of one silence of one rank."""

    first: Sample
    """The first sample at the present place."""
    last: Sample
    samples: int = 1
    """The number of samples at that place."""
    all: int = 1
    running: tuple[Running, ...] = ()

    @property
    def frozen_for(self) -> float:
        """Seconds for which the rank has not moved."""
        return self.last.at - self.first.at

    @property
    def known(self) -> bool:
        return self.all >= ENOUGH

    @property
    def kind(self) -> Kind:
        """The kind at the last sample. Of several threads, the one that may go on for the longest counts."""
        last = self.last
        if last.traced or any(thread.within(*_DEBUGGERS) for thread in last.judged()):
            return Kind.WATCHED
        if any(thread.wait is Wait.DISK for thread in last.judged()):
            return Kind.DISK
        if self.samples < ENOUGH:
            return Kind.MOVING
        if last.main.exchanges:
            return Kind.MET
        threads = list(last.judged())
        found = [self._of(thread, own) for thread, own in zip(threads, self.running, strict=True)]
        lonely = len(threads) == 1
        if Kind.LOCKED in found and last.unknown and last.main.waits_for is Wait.LOCK:
            found.append(Kind.ANSWERED)
        if lonely and found == [Kind.LOCKED] and self.busy:
            found = [Kind.NATIVE]
        if last.main.waits_for is Wait.CHILD:
            # The children count here, if any of them is at work.
            found = found[1:] or [Kind.ANSWERED if last.strangers or not last.children else Kind.LOCKED]
        return max(found, key=_LONGEST.index)

    @property
    def busy(self) -> bool:
        """Whether the rank's process uses the CPU."""
        return self.last.cpu - self.first.cpu > _BUSY * max(self.frozen_for, 0.1)

    def _of(self, thread: Thread, own: Running) -> Kind:
        if 2 * own.ran < self.samples:
            # All samples count: a loop that sleeps and looks may run in the last one.
            return Kind.ANSWERED if 2 * own.answered >= self.samples - own.ran else Kind.LOCKED
        if own.held < _HELD * own.ran:
            return Kind.NATIVE
        if len(own.lines) > 1 or own.counts or thread.plain:
            if thread.loop is Loop.FOR:
                return Kind.MOVING if own.counts else Kind.BETWEEN
            return Kind.PYTHON
        return Kind.BETWEEN


_LONGEST = (Kind.LOCKED, Kind.MET, Kind.PYTHON, Kind.BETWEEN, Kind.NATIVE, Kind.ANSWERED, Kind.DISK, Kind.MOVING)
"""The kinds in order of how long they may go on."""


def follow(known: Motion | None, sample: Sample) -> Motion:
    """The memory with one more sample. For a new silence, `known` is None."""
    threads = tuple(sample.judged())
    if known is None or known.last.place != sample.place:
        running = tuple(_run(Running(), None, thread) for thread in threads)
        return Motion(sample, sample, 1, known.all + 1 if known else 1, running)
    before = known.last.judged()
    running = tuple(map(_run, known.running, before, threads))
    return replace(known, last=sample, samples=known.samples + 1, all=known.all + 1, running=running)


def _run(own: Running, before: Thread | None, thread: Thread) -> Running:
    runs = thread.wait is Wait.NONE
    return Running(
        held=own.held + (runs and thread.gil),
        ran=own.ran + runs,
        answered=own.answered + (not runs and thread.waits_for not in _UNANSWERED),
        lines=own.lines | frozenset(frame.line for frame in thread.frames[:1]),
        counts=own.counts or (before is not None and before.inner != thread.inner),
    )
