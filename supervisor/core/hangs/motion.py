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

from collections.abc import Iterator
from dataclasses import dataclass, replace

from supervisor.core.stack import Frame, Stack
from supervisor.core.words import Word

ENOUGH = 3
"""Samples that make a judgement."""
_DEBUGGERS = ("/pdb.py", "/bdb.py", "/debugpy/", "/pydevd", "/ipdb/", "/pudb/", "/code.py", "IPython/terminal/")
_BYSTANDERS = (
    *("/wandb/", "/tensorboard/", "/tensorboardX/", "/mlflow/", "/comet_ml/", "/neptune/", "/clearml/", "/aim/"),
    *("/tqdm/", "/sentry_sdk/", "/opentelemetry/", "/prometheus_client/", "/dvclive/", "/swanlab/", "/codecarbon/"),
    *("utils/data/_utils/pin_memory.py", "/_supervise/", "/trainer/checkpoint/", "/trainer/rank/"),
)
"""Threads of trackers, of loaders, and our own, by a part of a file's name."""
_WORKER = "utils/data/_utils/worker.py"
_PROCESS = "/multiprocessing/process.py"
_QUEUES = ("/selectors.py", "/threading.py", "/queue.py")
_FOR_CHILDREN = ("/subprocess.py", "/multiprocessing/popen_", "utils/data/dataloader.py")
_FOR_THREADS = ("/threading.py", "/concurrent/futures/", "/queue.py", "/multiprocessing/pool.py", "/asyncio/")
_NEAR = 6
"""Frames from the innermost out that tell what a wait is for."""
_HELD = 0.8
"""Share of the samples in which a thread holds the GIL, from which on it always does."""
_BUSY = 0.3
"""Share of a CPU that a process uses which is not idle, whatever its main thread does."""


class Wait(Word):
    """What the kernel says that a thread waits for."""

    NONE = "nothing"
    """It runs."""
    LOCK = "lock"
    """Of its own process, without a time limit."""
    SOCKET = "socket"
    CHILD = "child"
    """A process to end, or a pipe."""
    FILE = "file"
    TIMED = "timer"
    DISK = "disk"
    """State D."""
    OTHER = "other"
    UNKNOWN = "unknown"


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


class Loop(Word):
    """The innermost loop of the source around a line."""

    NONE = ""
    FOR = "for"
    """It ends by itself as a rule."""
    WHILE = "while"


@dataclass(frozen=True, slots=True)
class Thread:
    """A Python thread at one moment. Frames from the innermost out."""

    frames: tuple[Frame, ...] = ()
    outer: int = 0
    """A digest of the variables of all functions but the innermost."""
    inner: int = 0
    """Of the innermost's."""
    gil: bool = False
    wait: Wait = Wait.UNKNOWN
    loop: Loop = Loop.NONE
    plain: bool = False
    """The line that it is in calls nothing."""

    def within(self, *parts: str) -> bool:
        return any(part in frame.file for frame in self.frames for part in parts)

    def near(self, *parts: str) -> bool:
        for frame in self.frames[:_NEAR]:
            if _PROCESS in frame.file and frame.function.endswith("_bootstrap"):
                # What follows is how its parent came to fork it.
                return False
            if any(part in frame.file for part in parts):
                return True
        return False

    @property
    def exchanges(self) -> bool:
        return Stack(0, self.frames).exchanges

    @property
    def idle_worker(self) -> bool:
        """A DataLoader's worker that waits for work."""
        loop = next((i for i, f in enumerate(self.frames) if _WORKER in f.file and f.function == "_worker_loop"), None)
        return loop is not None and all(
            f.file.endswith(_QUEUES) or "/multiprocessing/" in f.file for f in self.frames[:loop]
        )

    @property
    def waits_for(self) -> Wait:
        """With what its frames tell more than the kernel."""
        return Wait.CHILD if self.wait is not Wait.DISK and self.near(*_FOR_CHILDREN) else self.wait

    @property
    def hands_over(self) -> bool:
        """It waits for what another thread has been given to do, not just for a lock that somebody may have."""
        return self.near(*_FOR_THREADS)


@dataclass(frozen=True, slots=True)
class Child:
    """A process that the rank has started, at one moment."""

    pid: int
    cpu: float
    """Seconds."""
    main: Thread | None = None
    """None of one that is not Python's."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A rank at one moment."""

    at: float
    main: Thread
    beside: tuple[Thread, ...] = ()
    """Its other Python threads."""
    unknown: bool = False
    """It has a thread that is not Python's, and that may wake others: it waits for neither a lock nor the ranks."""
    children: tuple[Child, ...] = ()
    cpu: float = 0.0
    """Seconds that all its threads have used."""
    moved: int = 0
    """Bytes that its main thread has read and written."""
    traced: bool = False
    gpu: bool = False

    def judged(self) -> Iterator[Thread]:
        """The thread that steps, and those that it waits for."""
        yield self.main
        waits = {self.main.waits_for}
        if Wait.LOCK in waits and not self.main.exchanges:
            for thread in self._beside(self.main.hands_over):
                waits.add(thread.waits_for)
                yield thread
        if Wait.CHILD in waits:
            yield from (c.main for c in self.children if c.main is not None and not c.main.idle_worker)

    def _beside(self, handed_over: bool) -> Iterator[Thread]:
        """A thread that sleeps now and then may be doing what it was given, but it holds no lock meanwhile."""
        for thread in self.beside:
            if not thread.frames or thread.within(*_BYSTANDERS) or thread.exchanges:
                continue
            if handed_over or thread.wait is not Wait.TIMED:
                yield thread

    @property
    def strangers(self) -> tuple[Child, ...]:
        """Children that it waits for and that show no frames."""
        waits = any(thread.waits_for is Wait.CHILD for thread in self.judged())
        return tuple(c for c in self.children if c.main is None) if waits else ()

    @property
    def place(self) -> tuple[object, ...]:
        """Equal as long as it has not moved. The innermost function may run: only its callers stand."""
        threads = [
            (t.frames[:1] and (t.frames[0].file, t.frames[0].function), t.frames[1:], t.outer) for t in self.judged()
        ]
        return tuple(threads), self.moved, tuple((c.pid, round(c.cpu, 1)) for c in self.strangers)


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
