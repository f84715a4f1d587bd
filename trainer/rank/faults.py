"""The faults that a rank carries out on itself. Each is real: the supervisor gets no hint."""

from __future__ import annotations

import errno
import mmap
import os
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..rundir.files.durable import DISK, Buffer, Disk
from ..rundir.machine import cgroup
from ..rundir.records import faults
from ..rundir.records.damage import damage
from ..rundir.variables import MARK

if TYPE_CHECKING:
    from .progress import Progress


_OOM_LIMIT = 64 << 20
"""Bytes that the memory group of an `oom` fault may use. Memory that the process had before does not count."""
_OOM_BITE = 4 << 20


class InjectedFault(Exception):
    """Raised by the `exc` fault. It has its own type, so that a real bug is never taken for it."""


class FullDisk(Disk):
    """A disk that is full for one file: half of the first write succeeds. After that file there is room again."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def create(self, path: Path, chunks: Iterable[Buffer], size: int = 0) -> None:
        for chunk in chunks:
            with path.open("xb") as file:
                file.write(memoryview(chunk).cast("B")[: len(chunk) // 2])
            break
        self._progress.disk = DISK
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def inflict(fault: faults.Fault, progress: Progress, checkpoints: Path, optimizer: Any = None) -> None:
    """Carries out `fault` in this process. Most kinds do not return."""
    if fault.what.signal:
        os.kill(os.getpid(), fault.what.signal)
        return
    match fault.kind:
        case "exc":
            raise InjectedFault(f"injected: {fault.text}")
        case "exit":
            os._exit(fault.code)
        case "oom":
            _run_out_of_memory(progress)
        case "gil":
            _hold_the_gil()
        case "hang":
            _hang()
        case "slow":
            time.sleep(fault.seconds)
        case "nan":
            _poison(optimizer)
        case "enospc":
            progress.disk = FullDisk(progress)
        case "torn" | "corrupt":
            damage(checkpoints, fault)


def _run_out_of_memory(progress: Progress) -> None:
    """The kernel's OOM killer kills this process: alone in a small memory group, it asks for more than the limit.

    It never uses up the machine's memory, which would hurt others. If no such group can be made, the process sends
    itself the same signal, a warning says so, and the verdict is `killed`, which is true.
    """
    try:
        _exhaust(cgroup.make(os.environ[MARK], _OOM_LIMIT))
        why = f"the group took {2 * _OOM_LIMIT >> 20} MiB and the kernel killed nothing"
    except OSError as error:
        why = error.strerror or str(error)
    progress.note("warning", text=f"oom: no memory group to run out of memory in ({why}): a plain SIGKILL instead")
    os.kill(os.getpid(), signal.SIGKILL)


def _exhaust(group: cgroup.MemoryGroup) -> None:
    """Returns only if it could get twice the group's limit, which should not happen."""
    adjustment = Path("/proc/self/oom_score_adj")
    if int(adjustment.read_text()) < 0:
        # Otherwise the kernel might spare it, and it would wait for memory for ever.
        adjustment.write_text("0")
    cgroup.enter(group)
    hoard = []
    for _ in range(0, 2 * _OOM_LIMIT, _OOM_BITE):
        hoard.append(mmap.mmap(-1, _OOM_BITE))
        hoard[-1].write(b"x" * _OOM_BITE)


def _hold_the_gil() -> None:
    """A regular expression that backtracks for ever, in C code that never releases the GIL."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def _hang() -> None:
    """A deadlock: alive and idle. TERM does not end it, as it would not end a blocked collective with a handler."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)


def _poison(optimizer: Any) -> None:
    if optimizer is not None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.data.view(-1)[0] = float("nan")
                return
