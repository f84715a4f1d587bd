"""A rank of a standby that runs its program ahead, up to Checkpointer.restore(), and waits there for its release.

    first line ──> model, optimizer, process group ──> restore(): a warm-up, then the wait ──release──> the attempt
        │ it steps an optimizer, saves, fails or ends                  └ the supervisor has died: it ends
        └─> it cannot wait there: the reason is told, and it ends. If it was released by then, the attempt begins there

Before the release nothing of it counts. It has no Reporter: no beats, notes or journal. It takes the part of the cores
that the training beside it leaves: by the lowest priority, if that can be undone, and where cores are short by no more
than a quarter of one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ..rundir.environment import supervised
from ..rundir.files.codec import encode
from ..rundir.files.durable import replace_soon
from ..rundir.machine import priority
from ..rundir.records.gate import Gate, Release
from ..rundir.records.parking import File, Held, Parked, Reached, Unfit
from ..rundir.variables import RUN_DIR
from . import program
from .preload.throttle import Throttle
from .progress import progress

_SLICE = 0.01
"""Seconds of CPU between two rests, and of a rest between two looks whether it is over."""
_CHANGED = -1
"""The size of a file that may have changed since it was read: no file has it."""
_TOLD_AT = (1, 10, 30, 100, 1000)
"""Steps after which a rank tells how much of its GPU it uses. At first a dead attempt may still hold its part."""
_COMPUTE_MODE, _EXCLUSIVE = 20, (2, 3)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_MODE; prohibited, and one process at a time."""


class Parking:
    """The wait of this rank."""

    def __init__(self, gate: Gate, rank: int, begin: Callable[[Release], object]) -> None:
        """`begin` makes this process a rank of the attempt."""
        self._gate, self._rank, self._begin = gate, rank, begin
        self._loaded: list[str] = []
        self._throttle = Throttle(self._sleep)
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        priority.lower_for_now()
        if self.is_over:
            priority.raise_again(os.getpid(), self._nice)
        signal.signal(signal.SIGPROF, self._rest)
        signal.siginterrupt(signal.SIGPROF, False)
        signal.setitimer(signal.ITIMER_PROF, _SLICE, _SLICE)

    def wait(self, idle: Callable[[], object] | None = None) -> None:
        """This process is a rank of an attempt that begins now. If the supervisor has died, it ends here. `idle` is
        called from time to time."""
        self._hurry()
        about = Parked(os.getpid(), self._files(), _holds_gpu(), [*_written(self._gate), *_listening()])
        self._gate.put(self._gate.parked(self._rank), about)
        if (body := self._gate.wait_again(idle)) is None:
            _leave(0)
        self._over(body)

    @property
    def is_over(self) -> bool:
        """Whether this rank was released already. Another rank of its group may see it later."""
        return self._gate.release.exists()

    def end(self, why: str) -> None:
        """It cannot wait in restore(), because of `why`. So it ends; but if it was released already, it is a rank of
        the attempt from now on."""
        # Twice: it may be released while it says why.
        for _ in range(2):
            if (body := self._gate.released()) is not None:
                self._over(body)
                return
            with contextlib.suppress(OSError):
                self._gate.put(self._gate.unfit(self._rank), Unfit(why))
        _leave(1)

    def loaded(self, path: str) -> None:
        """The program has loaded that file by itself. It must be the same when the attempt begins."""
        self._loaded.append(path)

    def _over(self, body: Release) -> None:
        global _current
        self._hurry()
        _current = None
        self._begin(body)

    def _rest(self, number: int, frame: FrameType | None) -> None:
        if self.is_over:
            self._hurry()
        else:
            self._throttle.rest()

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.is_over and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE))

    def _hurry(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        # A signal that is on its way is dropped by the first of these.
        signal.signal(signal.SIGPROF, signal.SIG_IGN)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        priority.raise_again(os.getpid(), self._nice)

    def _files(self) -> list[File]:
        """The files of the program as they were when it read them. A file that has changed since this rank began may
        have been read before or after."""
        began = self._gate.ahead.stat().st_mtime_ns
        found = []
        for path in dict.fromkeys([*(path for path, *_ in program.loaded()), *self._loaded]):
            with contextlib.suppress(OSError, ValueError):
                known = Path(path).stat()
                # A file that was moved here keeps the time of its content.
                changed_at = max(known.st_mtime_ns, known.st_ctime_ns)
                size = known.st_size if changed_at < began else _CHANGED
                found.append((os.path.abspath(path), size, known.st_mtime_ns, known.st_ino))
        return found


_current: Parking | None = None
_rank: int | None = None
"""The rank that this process was started as. None in the processes that it starts."""
_reached: Reached | None = None


def current() -> Parking | None:
    """The wait of this process, if it is a rank of a standby."""
    return _current


def started(rank: int) -> None:
    """This process was started as that rank."""
    global _rank
    _rank = rank


def ahead(parking: Parking) -> None:
    """This process runs its program ahead, until `parking` is over."""
    global _current
    _current = parking


def _forget() -> None:
    global _current, _rank
    _current = _rank = None


os.register_at_fork(after_in_child=_forget)


def reached(park: bool) -> None:
    """This rank has called restore(): a standby can wait there. `park`: its program asks for that."""
    global _reached
    at = progress().position()
    _reached = Reached(park, 0 if at is None else at.here)
    _tell(_reached)


def learn(steps: int) -> None:
    """This rank has made so many steps. If it has called restore() and uses a GPU, it tells now and then how much of it
    it uses."""
    if steps in _TOLD_AT and _reached is not None and _holds_gpu():
        _tell(_reached)


def _tell(body: Reached) -> None:
    place = supervised()
    if place is None or _rank is None:
        return
    if _holds_gpu():
        # No other one: to ask for the free memory of a device makes a context there.
        cuda = sys.modules["torch"].cuda
        body.gpus = [_held(cuda, number) for number in range(cuda.device_count()) if cuda.memory_reserved(number)]
    with contextlib.suppress(OSError):
        replace_soon(place.attempt.reached(_rank), encode(body))


def _held(cuda: Any, number: int) -> Held:
    # Each rank may see its own device as number 0. An older torch does not tell the UUID.
    name = str(getattr(cuda.get_device_properties(number), "uuid", f"number {number}"))
    return Held(name, cuda.max_memory_reserved(number), cuda.mem_get_info(number)[0], _is_exclusive(number))


def _holds_gpu() -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def _is_exclusive(device: int) -> bool:
    """Whether no other process may use the GPU. False if the driver does not tell."""
    try:
        cuda, mode = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        told = cuda.cuDeviceGetAttribute(ctypes.byref(mode), _COMPUTE_MODE, device)
    except (OSError, AttributeError):
        return False
    return told == 0 and mode.value in _EXCLUSIVE


def _written(gate: Gate) -> list[str]:
    """A sentence for each file of the run that this process has open for writing, beside its own log."""
    run, own = os.environ.get(RUN_DIR, ""), str(gate.path)
    found = []
    for fd in sorted(path.name for path in Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            path = str(Path(f"/proc/self/fd/{fd}").readlink())
            if run and path.startswith(run + os.sep) and not path.startswith(own + os.sep):
                lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
                flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
                if flags & os.O_ACCMODE != os.O_RDONLY:
                    found.append(f"opens {path} for writing")
    return found


def _listening() -> list[str]:
    """A sentence for each port on which a socket of the program's Python listens. Those of torch are its own."""
    found = []
    for thing in [thing for thing in gc.get_objects() if issubclass(type(thing), socket.socket)]:
        with contextlib.suppress(OSError):
            if thing.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.append(f"listens at {thing.getsockname()}")
    return found


def _leave(code: int) -> NoReturn:
    """Ends this process. Nothing of the program runs any more: it would not know that it is a standby."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
