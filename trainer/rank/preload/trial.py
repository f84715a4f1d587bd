"""Imports are tried in a fork. If that fork can still fork ranks, it becomes the fork server. Else another fork tries
without the harmful modules.

    server ──fork──> child imports ──fit──> it serves, and its parent only waits for it
       ^               │ a module did harm, stood still or killed it: named, with all that import it
       └── again ──────┘

So if all goes well nothing is imported twice. If not, only these two processes are affected. While the child imports,
its parent goes on serving.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ...rundir.files.codec import decode, encode
from ...rundir.records.learned import Wanted
from ..process.children import end
from . import fitness, modules, own_modules
from .import_watch import ImportWatch
from .throttle import Throttle

_TRIES = 6
IDLE = 20.0
"""Seconds that a module's import may wait for something other than a core. A slower module is left to the script."""
SLOW = 300.0
"""Seconds that a module's import may take."""
_LOOK_EVERY = 0.5
_SOME = "one of the modules"
_PR_SET_PDEATHSIG = 1
_ROOM = 1 << 16


class _Told:
    """The modules that are being executed, in memory that another process can read."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _ROOM)

    def __call__(self, stack: list[str]) -> None:
        text = "\n".join(stack).encode()[: _ROOM - 4]
        self._memory[: len(text) + 4] = len(text).to_bytes(4, "little") + text

    def stack(self) -> list[str]:
        length = int.from_bytes(self._memory[:4], "little")
        return self._memory[4 : 4 + length].decode(errors="replace").split("\n") if length else []


def grow(wanted: Wanted, reads: dict[str, set[str]], gently: bool, requests: int, serve: Callable[[], bool]) -> Wanted:
    """Returns in a fork of the caller. The fork has imported the `wanted` modules that do no harm to forks. The caller
    itself returns only if no such fork succeeds, and has then imported nothing. Returns `wanted`, with the modules that
    were left out. `reads` gets, for each module, the variables that its import has read.

    If there is nothing to import, the caller returns at once. `serve()` is called when the descriptor `requests` is
    readable. It returns whether more requests can come.
    """
    for name in own_modules.other(wanted.mine) - wanted.left_out:
        wanted.left_out.add(name)
        wanted.causes[name] = "the script has its own"
    if all(name in sys.modules or wanted.is_out(name) for name in wanted.names):
        return wanted
    for _ in range(_TRIES):
        told = _Told()
        readable, writable = os.pipe()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(readable)
            _die_with(parent)
            reads |= _import(wanted, told, gently, writable)
            os.close(writable)
            return wanted
        os.close(writable)
        try:
            wanted.learn(_await(child, readable, told, requests, serve))
        finally:
            os.close(readable)
    wanted.causes["the rest"] = f"no {_TRIES} tries were enough to find all that must be left out"
    wanted.left_out |= set(wanted.names)
    return wanted


def _import(wanted: Wanted, told: _Told, gently: bool, report: int) -> dict[str, set[str]]:
    """In the fork: imports all modules that can be imported. Returns the variables that each has read. It does not
    return if there is harm to report."""
    between = Throttle().rest if gently else lambda: None
    with ImportWatch(wanted.left_out, told, between, wanted.late) as watch:
        for name in wanted.names:
            if wanted.is_out(name):
                continue
            with contextlib.suppress(modules.Barred):  # the watch has noted it
                modules.load([name])
    found = watch.left_out() - wanted.left_out
    if not watch.causes and not watch.barred:
        reason = fitness.unfit()
        if reason is None:
            return dict(watch.reads)
        watch.causes[_SOME], found = reason, set(wanted.names)
    with os.fdopen(report, "wb") as file:
        file.write(encode(Wanted([], watch.causes, found, watch.seconds(found))))
    os._exit(0)


def _await(child: int, readable: int, told: _Told, requests: int, serve: Callable[[], bool]) -> Wanted:
    """The modules that `child` found harmful. If it found none, it does not return: this process only waits for the
    child's end."""
    data, time_limit = b"", _TimeLimit(child, told)
    while True:
        news = select.select([readable, requests], [], [], _LOOK_EVERY)[0]
        if readable in news:
            more = os.read(readable, 1 << 16)
            if not more:
                break
            data += more
        elif news and not serve():
            end(child)
            os._exit(0)
        elif why := time_limit.over():
            stack = told.stack()
            end(child)
            return Wanted([], {stack[-1] if stack else _SOME: why}, set(stack))
    if data:
        os.waitpid(child, 0)
        return decode(data, Wanted)
    if (stack := told.stack()) and (how := _has_ended(child)):
        return Wanted([], {stack[-1]: f"its import ends the process ({how})"}, set(stack))
    while (ended := os.waitpid(-1, 0))[0] != child:
        pass
    os._exit(os.waitstatus_to_exitcode(ended[1]) & 0xFF)


def _has_ended(child: int) -> str:
    """How `child` has ended. It has closed its pipe."""
    # A child that serves closes the pipe while no module is being executed.
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _TimeLimit:
    """Measures how long the import of a module stands still."""

    def __init__(self, pid: int, told: _Told) -> None:
        self._schedstat = Path(f"/proc/{pid}/schedstat")
        self._told = told
        self._stack: list[str] = []
        self._since = self._at = time.monotonic()
        self._busy = self._wanted_core()
        self._idle = 0.0

    def over(self) -> str:
        """Why the wait for the module ends; empty while it goes on."""
        now, busy, stack = time.monotonic(), self._wanted_core(), self._told.stack()
        # A pause of the whole machine does not count as a pause of the module.
        self._idle += max(0.0, min(now - self._at, 2 * _LOOK_EVERY) - (busy - self._busy))
        self._at, self._busy = now, busy
        if stack != self._stack or not stack:
            self._stack, self._since, self._idle = stack, now, 0.0
        if self._idle > IDLE:
            return f"its import stood still for {IDLE:.0f} s"
        return f"its import took more than {SLOW:.0f} s" if now - self._since > SLOW else ""

    def _wanted_core(self) -> float:
        """Seconds for which the child has run or waited for a core."""
        try:
            running, waiting = self._schedstat.read_bytes().split()[:2]
        except (OSError, ValueError):
            return 0.0
        return (int(running) + int(waiting)) / 1e9


def _die_with(parent: int) -> None:
    """This process is killed when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
