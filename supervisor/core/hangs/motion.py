"""What a silent rank does, by samples of its stacks: whether it moves, and if not, who might still wake it.

Judged is the thread that steps, the main one, and whatever it waits for: where that is a lock, the script's other
threads; where it is a child, its children. A tracker's or a loader's thread beside it is not judged, nor a DataLoader's
worker without work: they answer for nobody.

    moving     the stack changes between samples: other frames, another line in a caller, a caller's variables
    python     one function runs, and nothing changes but its own line: `while True: pass`
    between    it holds the GIL in one line: a regex, or a loop that nothing tells apart from one
    native     it uses the CPU without the GIL in one frame: a tokenizer's batch, faiss, eigh
    answered   idle in a wait that something outside may end: a socket, a child, a file, a timer, a thread of a library
    locked     idle, and nothing that is known can end it but the rank itself, or the others
    met        it stands in a collective: it waits for other ranks, idle or busy
    disk       a disk or a file server keeps it (state D): no verdict by itself
    watched    a person looks at it with a debugger
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from supervisor.core.sample import Loop, Sample, Thread, Wait
from supervisor.core.words import Word

ENOUGH = 3
"""Samples that make a judgement."""
_DEBUGGERS = ("/pdb.py", "/bdb.py", "/debugpy/", "/pydevd", "/ipdb/", "/pudb/", "/code.py", "IPython/terminal/")
_HELD = 0.8
"""Share of the samples in which a thread holds the GIL, from which on it always does."""
_BUSY = 0.3
"""Share of a CPU that a process uses which is not idle, whatever its main thread does."""


class Kind(Word):
    """As above."""

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
    """What one judged thread has done since nothing changed."""

    held: int = 0
    """Samples in which it held the GIL."""
    ran: int = 0
    lines: frozenset[int] = frozenset()
    counts: bool = False
    """Its innermost function's variables have changed."""


@dataclass(frozen=True, slots=True)
class Motion:
    """What is remembered of one silence of one rank."""

    first: Sample
    """The first one of the place where it stands."""
    last: Sample
    samples: int = 1
    """In that place."""
    all: int = 1
    running: tuple[Running, ...] = ()

    @property
    def frozen_for(self) -> float:
        """Seconds for which it has not moved."""
        return self.last.at - self.first.at

    @property
    def known(self) -> bool:
        return self.all >= ENOUGH

    @property
    def kind(self) -> Kind:
        """As of the last sample. Of several threads the one that may go on for the longest counts."""
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
            # It is its children that count, if there are any at work.
            found = found[1:] or [Kind.ANSWERED if last.strangers or not last.children else Kind.LOCKED]
        return max(found, key=_LONGEST.index)

    @property
    def busy(self) -> bool:
        """Whether its process uses the CPU."""
        return self.last.cpu - self.first.cpu > _BUSY * max(self.frozen_for, 0.1)

    def _of(self, thread: Thread, own: Running) -> Kind:
        if 2 * own.ran < self.samples:
            waits = thread.waits_for
            return Kind.LOCKED if waits in (Wait.LOCK, Wait.OTHER, Wait.UNKNOWN, Wait.NONE) else Kind.ANSWERED
        if own.held < _HELD * own.ran:
            return Kind.NATIVE
        if len(own.lines) > 1 or own.counts or thread.plain:
            if thread.loop is Loop.FOR:
                return Kind.MOVING if own.counts else Kind.BETWEEN
            return Kind.PYTHON
        return Kind.BETWEEN


_LONGEST = (Kind.LOCKED, Kind.MET, Kind.PYTHON, Kind.BETWEEN, Kind.NATIVE, Kind.ANSWERED, Kind.DISK, Kind.MOVING)
"""By how long it may go on."""


def follow(known: Motion | None, sample: Sample) -> Motion:
    """The memory with one more sample; of a new silence, `known` is None."""
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
        lines=own.lines | frozenset(frame.line for frame in thread.frames[:1]),
        counts=own.counts or (before is not None and before.inner != thread.inner),
    )
