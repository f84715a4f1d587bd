"""A program: kills the ranks of this node when their lease is over, or their supervisor is dead. `warden.py PLACE MARK
PID START`.

    the supervisor is dead                     everything of the run here is killed at once; nobody adopts it
    it is stopped, and the lease is over       killed at once
    it lives, and the lease is over            it kills its ranks itself, and knows them better: it has a tenth of a
                                               second until it says that they are gone
    another supervisor has the node            what that has started is left alone
    the run is over here                       the warden ends

A flush lives on: it only reads what is there. The supervisor starts the warden beside the ranks, not among them: it
has no mark, holds nothing of the run open, and ends after the supervisor.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# A file run by path has its own folder in sys.path: nobody must import the files beside this one.
if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    importlib.import_module("_supervise.names").ours_alone()

from supervisor.nodes.lease import LeaseWord, boottime
from supervisor.process import family
from supervisor.process.kill import kill_family
from supervisor.process.proctree import Process, ancestors, carries, started_by
from trainer.rundir.machine.proc import is_there, stat

_FIRST = 0.1
"""Seconds that a living supervisor has after the end of a lease."""
_LOOK_EVERY, _SEARCH_EVERY = 0.1, 1.0
"""Seconds between two looks at the word, and between two walks over the processes, while there are ranks."""
_SOONEST = 0.002
_WITHIN = 1.0
"""Seconds of one try to kill everything. What still waits for a disk then has its signal, and ends when it is back."""
_OTHERS = ("flush", "sync")
"""What the marks of processes end with that write no state of their own."""


def start_warden(place: Path, mark: str) -> Process:
    """The warden of this process is started, for the processes of the run with that mark. It guards them about half a
    second later. OSError if it cannot be started, or if there is no lease word in `place`."""
    LeaseWord(place, writes=False).close()
    me = stat(os.getpid())
    assert me is not None
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), str(place), mark, str(os.getpid()), str(me.started)],
        # Whoever waits for the end of our output must not wait for the warden.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    # The one reaper of the run reaps it, like all others.
    child.returncode = 0
    return Process(child.pid)


class Warden:
    """The guard of one supervisor's ranks."""

    def __init__(self, word: LeaseWord, mark: str, supervisor: Process) -> None:
        self._word, self._mark, self._supervisor = word, mark, supervisor
        self._known: dict[int, int] = {}
        """The pids and start times of the processes of the run, as of the last walk."""
        self._walked_at = float("-inf")

    def watch(self) -> None:
        """Returns when nothing is left to guard."""
        poll = select.poll()
        poll.register(self._supervisor.fd, select.POLLIN)
        while not self._word.over:
            lease, now = self._word.read(), boottime()
            dead = bool(poll.poll(0))
            if dead:
                # It may have ended the run and then itself since we looked.
                if not self._word.over:
                    self.clear_for_good()
                return
            if lease.fenced(now) and (now >= lease.until + _FIRST or self._is_stopped()):
                self.clear()
                # It is told by the supervisor, if that lives, that the ranks are gone. Until then nothing may begin.
                time.sleep(_LOOK_EVERY)
                continue
            if lease.armed and now >= self._walked_at + _SEARCH_EVERY:
                self._walk(now)
            soon = lease.until - now if lease.armed and lease.until > now else _LOOK_EVERY
            poll.poll(max(_SOONEST, min(soon, _LOOK_EVERY)) * 1000)

    def clear_for_good(self) -> None:
        """Nothing of the run runs here any more, however long that takes, unless another supervisor has begun: it ends
        what it finds, and what it starts is not to be killed."""
        while self._word.stands and self.clear():
            # What got the signal is dead, or waits for a disk or a driver: that takes its time.
            time.sleep(_LOOK_EVERY)

    def clear(self) -> int:
        """Nothing of the run runs here any more, unless it waits for a disk or a driver. Returns the number of
        processes that got the signal. Zombies, which the init of a container may never reap, count as gone."""
        steps = self._find()
        return kill_family(lambda: next(steps, []), {}, _WITHIN, time.monotonic())

    def _find(self) -> Iterator[list[int]]:
        """First those that are known, and their children, which is quick. Then all that have the mark, the youngest
        first: to read what each process of the machine has takes a while, so each is read once, and killed as soon as
        it is found. Nobody, once a look at all processes has found nobody: what was found may have forked."""
        known = [pid for pid, started in self._known.items() if self._is_still(pid, started)]
        if known:
            yield [*known, *family.walk(known, self._spared())]
        read = set(known)
        while True:
            with os.scandir("/proc") as entries:
                new = {int(entry.name) for entry in entries if entry.name.isdecimal()} - read
            read |= new
            found = False
            for pid in sorted(new, reverse=True):
                if self._is_ours(pid):
                    found = True
                    yield [pid]
            if not found:
                yield []

    def _walk(self, now: float) -> None:
        """The processes of the run are known: the supervisor's descendants with its mark."""
        self._walked_at = now
        found = dict[int, int]()
        for pid in family.walk([self._supervisor.pid], self._spared()):
            if pid in self._known:
                found[pid] = self._known[pid]  # If it is another one by now, its start time will tell.
            elif self._is_ours(pid) and (each := stat(pid)) is not None:
                found[pid] = each.started
        self._known = found

    def _spared(self) -> set[int]:
        return {os.getpid()}

    def _is_ours(self, pid: int) -> bool:
        return carries(pid, self._mark) and not self._is_other(pid) and not self._has_another(pid)

    def _has_another(self, pid: int) -> bool:
        """Whether another supervisor lives that has started it. One that has a place of its own may have taken over
        this node in the moment in which ours died."""
        said = started_by(pid)
        return said not in (None, self._supervisor.pid) and said in ancestors(pid)

    def _is_other(self, pid: int) -> bool:
        return any(carries(pid, f"{self._mark}.{name}") for name in _OTHERS)

    @staticmethod
    def _is_still(pid: int, started: int) -> bool:
        found = stat(pid)
        return found is not None and found.started == started and is_there(pid)

    def _is_stopped(self) -> bool:
        found = stat(self._supervisor.pid)
        return found is not None and found.state in "tT"


def main(place: Path, mark: str, pid: int, started: int) -> None:
    # Engines send these to every process of a job. The warden ends with its supervisor.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # Its time comes when the ranks take every core. Only root may go before them.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    word = LeaseWord(place, writes=False)
    try:
        supervisor = Process(pid)
    except ProcessLookupError:
        supervisor = None
    found = stat(pid)
    if supervisor is None or found is None or found.started != started:
        # It died before we could hold it.
        dead = Process(os.getpid())
        Warden(word, mark, dead).clear_for_good()
        return
    Warden(word, mark, supervisor).watch()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
