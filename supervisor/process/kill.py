"""The one place that ends processes. A process found by pid is first held by pidfd. So a reused pid is never hit.

trainer/rank/process/children.py ends the ranks' own children. A process that ends itself does not come here.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import psutil

from supervisor.process.proctree import Process, held, is_alive, members
from supervisor.process.reaper import Reaper
from trainer.rundir.machine.proc import is_running

_TICK, _PATIENT = 0.01, 1.0
"""Seconds between two looks at what has to go: at first, and at most."""
_TICKS = os.sysconf("SC_CLK_TCK")
_MOMENT = 0.0005
"""Seconds between two looks at a family that was just killed. Every recovery waits for them. Of what is not gone after
a while each look comes later."""
_CARETAKERS = ("multiprocessing.resource_tracker import main", "torch_shm_manager")
_CARE = 4.0
"""Seconds that a caretaker gets after its processes are killed. torch_shm_manager waits 2 s for another client; then it
removes what is left and ends (SHUTDOWN_TIMEOUT in libshm's manager.cpp, read in torch 2.13)."""

Target = Process | psutil.Process


@dataclass(frozen=True, slots=True)
class Killed:
    sent: int
    """The number of processes that got the signal."""
    left: tuple[int, ...]
    """The pids that were not gone in time."""


def kill(targets: Iterable[Target], within: float = 0.0, began: float | None = None) -> Killed:
    """Sends SIGKILL to each of `targets` that is still the found process. Waits up to `within` seconds for their end.

    Python's resource tracker and torch's manager of shared memory outlive their processes. They remove the files that
    these have left in /dev/shm, then end by themselves. So they get the signal last, some seconds after the killing
    `began`.
    """
    now = time.monotonic()
    until, care_until = now + within, (now if began is None else began) + _CARE
    left, sent = list(targets), set[int]()
    while True:
        late = time.monotonic() >= care_until
        due = [target for target in left if target.pid not in sent and (late or not is_caretaker(target.pid))]
        sent |= {target.pid for target in due if _strike(target)}
        left = [target for target in left if _is_there(target)]
        if not left or time.monotonic() >= until:
            return Killed(len(sent), tuple(target.pid for target in left))
        time.sleep(_TICK)


def kill_child(pid: int) -> None:
    """Sends SIGKILL to that child of ours, unless it is over: it may have ended just now, and be reaped."""
    with contextlib.suppress(psutil.NoSuchProcess):
        kill([psutil.Process(pid)])


def kill_family(find: Callable[[], list[int]], known: Mapping[int, Process], within: float, began: float) -> int:
    """Kills whoever `find` finds, until it finds nobody new and none of them runs code any more, or for `within`
    seconds. Returns the number of processes that got the signal. `known` are held already. Caretakers get the signal
    late, as in kill(), and are not waited for."""
    start = time.monotonic()
    late = start >= began + _CARE
    struck, passed = set[int](), set[int]()
    while True:
        found, found_at = find(), time.clock_gettime(time.CLOCK_BOOTTIME)
        new = [pid for pid in found if pid not in struck | passed]
        passed |= set() if late else {pid for pid in new if is_caretaker(pid)}
        struck |= {pid for pid in new if pid not in passed and _strike_one(pid, known.get(pid), found_at)}
        took = time.monotonic() - start
        if (not new and not any(map(is_running, struck))) or took >= within:
            return len(struck)
        time.sleep(min(_TICK, max(_MOMENT, took / 20)))


def _strike_one(pid: int, known: Process | None, found_at: float) -> bool:
    """Kills the process, unless it has begun after it was found: then another one has got its pid."""
    if known is not None:
        return _send(known)
    try:
        process = Process(pid)
    except ProcessLookupError:
        return False
    try:
        return process.started is not None and process.started <= found_at * _TICKS and _send(process)
    finally:
        process.close()


def end_all(mark: str, spared: set[int], reaper: Reaper, time_limit: float) -> tuple[int, ...]:
    """All processes of the run are gone, except `spared` and their descendants. Returns the pids that could not be
    killed within `time_limit` seconds. It looks again until it finds none: a killed process may have forked before its
    end."""
    began = time.monotonic()
    processes = members(mark, spared)
    while processes and time.monotonic() < began + time_limit:
        kill(processes, began=began)
        reaper.reap()
        # Whatever is still there after a second waits for a disk or a driver. Each look reads all of /proc.
        time.sleep(min(_PATIENT, max(_TICK, (time.monotonic() - began) / 10)))
        processes = members(mark, spared)
    return tuple(process.pid for process in processes)


def is_caretaker(pid: int) -> bool:
    """Whether the process cleans up after other processes when these are gone."""
    with contextlib.suppress(psutil.Error):
        return any(name in word for word in psutil.Process(pid).cmdline() for name in _CARETAKERS)
    return False


def _strike(target: Target) -> bool:
    if isinstance(target, Process):
        return _send(target)
    with held(target) as process:
        return process is not None and _send(process)


def _send(process: Process) -> bool:
    try:
        signal.pidfd_send_signal(process.fd, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _is_there(target: Target) -> bool:
    if isinstance(target, Process):
        poll = select.poll()
        poll.register(target.fd, select.POLLIN)
        return not poll.poll(0)
    return is_alive(target)
