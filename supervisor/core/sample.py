"""A rank at one moment, seen from outside: its threads, the waits of these threads, and its children."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from supervisor.core.stack import Frame, Stack
from supervisor.core.words import Word

_BYSTANDERS = (
    *("/wandb/", "/tensorboard/", "/tensorboardX/", "/mlflow/", "/comet_ml/", "/neptune/", "/clearml/", "/aim/"),
    *("/tqdm/", "/sentry_sdk/", "/opentelemetry/", "/prometheus_client/", "/dvclive/", "/swanlab/", "/codecarbon/"),
    *("utils/data/_utils/pin_memory.py", "/_supervise/", "/trainer/checkpoint/", "/trainer/rank/"),
)
"""Parts of the file names of threads that belong to trackers, to loaders and to us."""
_WORKER = "utils/data/_utils/worker.py"
_PROCESS = "/multiprocessing/process.py"
_QUEUES = ("/selectors.py", "/threading.py", "/queue.py")
_FOR_CHILDREN = ("/subprocess.py", "/multiprocessing/popen_", "utils/data/dataloader.py")
_FOR_THREADS = ("/threading.py", "/concurrent/futures/", "/queue.py", "/multiprocessing/pool.py", "/asyncio/")
_NEAR = 6
"""The number of frames, from the innermost out, that show the purpose of a wait."""


class Wait(Word):
    """The thing that a thread waits for, as the kernel says."""

    NONE = "nothing"
    """It runs."""
    LOCK = "lock"
    """A lock of its own process, without a time limit."""
    SOCKET = "socket"
    CHILD = "child"
    """The end of a process, or a pipe."""
    FILE = "file"
    TIMED = "timer"
    DISK = "disk"
    """State D."""
    OTHER = "other"
    UNKNOWN = "unknown"


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
    """A digest of the variables of all functions except the innermost."""
    inner: int = 0
    """A digest of the variables of the innermost function."""
    gil: bool = False
    wait: Wait = Wait.UNKNOWN
    loop: Loop = Loop.NONE
    plain: bool = False
    """Its line calls nothing."""

    def within(self, *parts: str) -> bool:
        return any(part in frame.file for frame in self.frames for part in parts)

    def near(self, *parts: str) -> bool:
        for frame in self.frames[:_NEAR]:
            if _PROCESS in frame.file and frame.function.endswith("_bootstrap"):
                # The frames after this one are from the parent, up to the fork.
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
        """The thing that it waits for. Its frames may show more than the kernel does."""
        return Wait.CHILD if self.wait is not Wait.DISK and self.near(*_FOR_CHILDREN) else self.wait

    @property
    def hands_over(self) -> bool:
        """Whether it waits for the work of another thread, and not just for a lock."""
        return self.near(*_FOR_THREADS)


@dataclass(frozen=True, slots=True)
class Child:
    """A process that the rank has started, at one moment."""

    pid: int
    cpu: float
    """CPU seconds that it has used."""
    main: Thread | None = None
    """None if it is not a Python process."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A rank at one moment."""

    at: float
    main: Thread
    beside: tuple[Thread, ...] = ()
    """Its other Python threads."""
    unknown: bool = False
    """It has a thread that is not a Python thread, and that may wake others. Such a thread waits for neither a lock nor
    the ranks."""
    children: tuple[Child, ...] = ()
    cpu: float = 0.0
    """Seconds that all its threads have used."""
    moved: int = 0
    """Bytes that its main thread has read and written."""
    traced: bool = False
    gpu: bool = False

    def judged(self) -> Iterator[Thread]:
        """The thread that steps, and the threads that it waits for."""
        yield self.main
        waits = {self.main.waits_for}
        if Wait.LOCK in waits and not self.main.exchanges:
            for thread in self._beside(self.main.hands_over):
                waits.add(thread.waits_for)
                yield thread
        if Wait.CHILD in waits:
            yield from (c.main for c in self.children if c.main is not None and not c.main.idle_worker)

    def _beside(self, handed_over: bool) -> Iterator[Thread]:
        """A thread that sleeps now and then may be doing work that was handed to it. But it holds no lock while it
        sleeps."""
        for thread in self.beside:
            if not thread.frames or thread.within(*_BYSTANDERS) or thread.exchanges:
                continue
            if handed_over or thread.wait is not Wait.TIMED:
                yield thread

    @property
    def strangers(self) -> tuple[Child, ...]:
        """Children that it waits for and whose frames cannot be read."""
        waits = any(thread.waits_for is Wait.CHILD for thread in self.judged())
        return tuple(c for c in self.children if c.main is None) if waits else ()

    @property
    def place(self) -> tuple[object, ...]:
        """The same value as long as the rank has not moved. The innermost function may run: only its callers must
        stand."""
        threads = [
            (t.frames[:1] and (t.frames[0].file, t.frames[0].function), t.frames[1:], t.outer) for t in self.judged()
        ]
        return tuple(threads), self.moved, tuple((c.pid, round(c.cpu, 1)) for c in self.strangers)
