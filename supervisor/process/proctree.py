"""Finds every process of an attempt, with any parent, and signals it by pidfd. kill.py ends them.

torchrun gives each rank its own session. So a kill of torchrun's process group misses the ranks, and they outlive
torchrun. They are still found: the supervisor is a subreaper, so orphans become its children. Also, a mark in the
environment names the run. So even the orphans of a killed supervisor are found.

Not all that is below us is the run's. A shell that ends in `exec supervise …` becomes us, and leaves us its children:
its background jobs, and the `tee` that writes its log.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from supervisor.process.family import walk
from trainer.rundir.machine.proc import PF_EXITING, is_running, stat, variable
from trainer.rundir.variables import MARK, SUPERVISOR_PID

_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
CROWDED = (*EXHAUSTED, errno.EAGAIN)
"""The same where a process is to be started: there may be no more of them (ulimit -u, a cgroup's pids.max)."""
_NO_PROCESS = (errno.ESRCH, errno.EINVAL, errno.ENOENT)
"""What the kernel says of a pid that is only a session's, a group's or a thread's by now: it depends on its version."""
_TICK = 1.0 / os.sysconf("SC_CLK_TCK")
_ZOMBIE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_inherited: dict[int, int] | None = None
"""The processes that this one had below it before it began a run, and what they have started since: pid and start time.
None: nobody has asked to remember them."""


def be_subreaper(on: bool = True) -> bool:
    """Orphans among our descendants become our children (prctl(2)), or no longer. False if the system refuses."""
    refused: int = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)
    return refused == 0


def is_subreaper() -> bool:
    """Whether orphans among our descendants become our children."""
    answer = ctypes.c_int(0)
    refused: int = ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0)
    return refused == 0 and bool(answer.value)


class Process:
    """One process, held by pidfd. So a reused pid is never hit."""

    def __init__(self, pid: int) -> None:
        """ProcessLookupError if the process is gone."""
        self.pid = pid
        try:
            self.fd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno not in _NO_PROCESS:
                raise
            raise ProcessLookupError(errno.ESRCH, f"{pid} is no process") from error
        found = stat(pid)
        self.started = None if found is None else found.started
        """As in Stat. None if it was gone before we could look."""
        self._stat: int | None = None

    @classmethod
    def as_of(cls, pid: int, at: float) -> Process:
        """The process that had `pid` at the time `at`, by the machine's clock. ProcessLookupError if it is gone."""
        process = cls(pid)
        if process._began_after(at):
            process.close()
            raise ProcessLookupError
        return process

    def _began_after(self, at: float) -> bool:
        """Whether it surely began after `at`. Then it got the pid later."""
        # The kernel counts from boot, and includes sleep. After a sleep of the machine a process looks older, never
        # younger. Nor if we have to wait for a CPU between the two clocks: they are read in this order.
        now = time.monotonic()
        asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - now
        return self.started is not None and self.started * _TICK - asleep > at + _TICK

    def close(self) -> None:
        os.close(self.fd)
        if self._stat is not None:
            os.close(self._stat)
            self._stat = None

    def is_leaving(self) -> bool:
        """Whether it runs no code any more, but is not gone yet. A process with much memory, or with memory of a GPU,
        is so for a second, and only then its descriptor is readable. It is asked often, so it reads little."""
        try:
            if self._stat is None:
                self._stat = os.open(f"/proc/{self.pid}/task/{self.pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
            state, *_, flags, _ = os.pread(self._stat, 512, 0).rpartition(b")")[2].split(None, 7)
            ends = state in (b"Z", b"X") or int(flags) & PF_EXITING
        except (OSError, ValueError):
            return False
        return bool(ends) and not is_running(self.pid)

    def send(self, number: int) -> bool:
        """Sends a signal. False if the process was gone. To end a process, use kill()."""
        assert number != signal.SIGKILL
        try:
            signal.pidfd_send_signal(self.fd, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def is_alive(process: psutil.Process) -> bool:
    """Whether it is still the found process, and not a zombie."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() not in _ZOMBIE
    return False


def living(pids: Iterable[int]) -> list[psutil.Process]:
    """Those of `pids` that are there, and no zombies."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if process.status() not in _ZOMBIE:
                found.append(process)
    return found


def carries(pid: int, mark: str) -> bool:
    """Whether the environment of that process has `mark` (of a run, or of one of its attempts)."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise  # This does not mean that it has no mark. We just cannot see.
        return False
    value = f"{MARK}={mark}".encode()
    # Nearly none has it: so that is asked first, of the whole.
    return value in environ and any(each == value or each.startswith(value + b".") for each in environ.split(b"\0"))


def started_by(pid: int) -> int | None:
    """The pid of the supervisor that has started that process, or what it is a fork of, by its environment."""
    said = variable(pid, SUPERVISOR_PID) or b""
    return int(said) if said.isdigit() else None


def ancestors(pid: int) -> set[int]:
    """The pids of its parent, of the parent's parent, and so on."""
    found = set[int]()
    while (each := stat(pid)) is not None and each.parent > 0 and each.parent not in found:
        pid = each.parent
        found.add(pid)
    return found


def marked(mark: str) -> list[psutil.Process]:
    """The living processes of this machine with `mark` in their environment (of a run, or of one of its attempts)."""
    me = os.getpid()
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdecimal()]
    return living(pid for pid in pids if pid != me and carries(pid, mark))


def remember_inherited() -> None:
    """What is below this process now belongs to no run of it. Call it before this process starts any other that stays.
    Only the first call counts."""
    global _inherited
    if _inherited is None:
        _inherited = _started(walk([os.getpid()]))


def inherited(mark: str) -> set[int]:
    """The processes below us that are not the run's, since we had them before it, or they descend from those: also if
    their parents have ended since the last call, and they have become our children. Whatever carries the mark is the
    run's, with its descendants: a shell that gets the orphans of a dead supervisor may become the next one."""
    global _inherited
    if not _inherited:
        return set()
    # Their pids may belong to others by now. No process of the run gets below one of them: orphans move up only.
    before = [pid for pid, started in _started(_inherited).items() if started == _inherited[pid]]
    found = dict.fromkeys([*before, *walk(before)])
    ours = [pid for pid in found if carries(pid, mark)]
    _inherited = _started(found.keys() - {*ours, *walk(ours)})
    return set(_inherited)


def _started(pids: Iterable[int]) -> dict[int, int]:
    """The start times of those that are there."""
    return {pid: found.started for pid in pids if (found := stat(pid)) is not None}


def below(mark: str, spared: set[int], more: Iterable[int] = ()) -> list[int]:
    """Our descendants and those of `more`, nearest first, without `spared`, what we had before the run, and the
    descendants of both. Every search for processes to end that does not go by the mark goes this way."""
    return walk([os.getpid(), *more], spared | inherited(mark))


def members(mark: str, spared: set[int]) -> list[psutil.Process]:
    """The living processes of the run: our descendants. If there are none, all processes with the mark. `spared` and
    their descendants are left out."""
    # Our descendants are found quickly. All of /proc is read only to confirm that nothing is left.
    return living(below(mark, spared)) or strangers(mark, spared)


def strangers(mark: str, spared: set[int]) -> list[psutil.Process]:
    """The living processes with the mark, wherever they are, without `spared` and their descendants. It reads all of
    /proc."""
    found = marked(mark)
    spared = {*walk(spared), *spared} if found else spared
    return [process for process in found if process.pid not in spared]


@contextlib.contextmanager
def held(found: psutil.Process) -> Iterator[Process | None]:
    """The process that was `found`. None if it is gone."""
    try:
        process = Process(found.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        # The pidfd is open, so from here on the pid cannot be reused. It may have been reused before.
        yield process if found.is_running() else None
    finally:
        process.close()


def send_all(processes: list[psutil.Process], number: int) -> int:
    """Sends `number` to each of `processes` that is still the found process. Returns the number of receivers."""
    sent = 0
    for found in processes:
        with held(found) as process:
            sent += process is not None and process.send(number)
    return sent
