"""Samples of silent ranks: py-spy's stacks of all their threads, and the kernel's view of them.

Only the requested ranks are sampled, so in calm operation nothing runs. py-spy reads the memory of a rank from outside,
without stopping it (0.02 to 0.24 s of CPU for one dump). The variables that it reads are made into a digest and
forgotten. If it is not installed, or has no permission (kernel.yama.ptrace_scope), there are no samples, and
`available` is false.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from supervisor.attempt import waits
from supervisor.attempt.source import about
from supervisor.attempt.stacks import pyspy
from supervisor.core.sample import Child, Sample, Thread, Wait
from supervisor.core.stack import Frame
from supervisor.process import kernel
from supervisor.process.kill import kill_child
from trainer.rundir.machine.proc import stat

TIME_LIMIT = 5.0
"""Seconds that a dump may take."""
EVERY, RARELY = 0.5, 10.0
"""The least seconds between two samples of a rank. And the most, after a long silence."""
_SHARE = 0.25
"""The largest share of the time in which dumps may run."""
_GROWTH = 1 / 60
"""Seconds between samples, for each second of silence."""
_ATTEMPTS = 5
"""After this many dumps of a rank without a result, and none of another rank in between, no more are tried."""
_REFUSALS = 3
_CHILDREN = 8
"""The most children of a rank that are sampled."""


class Dump:
    """One running py-spy."""

    def __init__(self, program: str, pid: int, now: float) -> None:
        """OSError if it cannot be started."""
        self.pid, self.began = pid, now
        # A file, so that py-spy can end although nobody reads.
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        command = [program, "dump", "--nonblocking", "--full-filenames", "--json", "--locals", "--pid", str(pid)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.DEVNULL, env={}
            )
        except OSError:
            self._output.close()
            raise

    def over(self, now: float) -> bool:
        if now > self.began + TIME_LIMIT:
            self._stop()
        return self._process.poll() is not None

    def result(self) -> list[dict[str, Any]]:
        """One dict for each thread. Empty if py-spy gave no result."""
        self._output.seek(0)
        try:
            found = json.loads(self._output.read() or b"[]")
        except ValueError:
            return []
        return found if isinstance(found, list) else []

    def close(self) -> None:
        """py-spy does not run any more."""
        self._stop()
        self._process.wait()
        self._output.close()

    def _stop(self) -> None:
        if self._process.poll() is None:
            kill_child(self._process.pid)


class _Round:
    """One rank while it is sampled: first itself, then the children that it waits for."""

    def __init__(self, own: Dump) -> None:
        self.own: Dump | None = own
        self.sample: Sample | None = None
        self.pids: list[int] = []
        self.children: list[Dump] = []
        self.mains: dict[int, Thread] = {}


class Sampler:
    """The samples of one attempt's ranks. Never waits."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the script's working folder."""
        self.samples: dict[int, Sample] = {}
        """The newest sample of each rank."""
        self.available = pyspy() is not None
        self._folder = folder
        self._rounds: dict[int, _Round] = {}
        self._due: dict[int, float] = {}
        self._failed = Counter[int]()
        """By rank: dumps without a result, since the last one with a result. A pause of the machine fails all at
        once."""
        self._refused: dict[int, int] = {}
        """By pid of a child: how often it has given no stacks. Then it is not a Python process."""

    def look(self, wanted: Mapping[int, float], pids: Mapping[int, int], now: float) -> None:
        """Reads the finished dumps, and begins new ones. `wanted`: the ranks to sample, with the seconds of their
        silence."""
        for rank, turn in list(self._rounds.items()):
            self._go_on(rank, turn, now)
        if not self.available:
            return
        for rank, silent in wanted.items():
            if rank in pids and rank not in self._rounds and now >= self._due.get(rank, 0.0):
                self._begin(rank, pids[rank], silent, now)

    def close(self) -> None:
        """No dump runs any more."""
        for turn in self._rounds.values():
            for dump in [*([turn.own] if turn.own else []), *turn.children]:
                dump.close()
        self._rounds.clear()

    def _begin(self, rank: int, pid: int, silent: float, now: float) -> None:
        program = pyspy()
        if program is None:
            self.available = False
            return
        with contextlib.suppress(OSError):
            self._rounds[rank] = _Round(Dump(program, pid, now))
            self._due[rank] = now + min(max(EVERY, silent * _GROWTH), RARELY)

    def _go_on(self, rank: int, turn: _Round, now: float) -> None:
        if turn.own is not None:
            if not turn.own.over(now):
                return
            turn.sample, pid, took = self._of_rank(turn.own), turn.own.pid, now - turn.own.began
            turn.own.close()
            turn.own = None
            self._due[rank] = max(self._due.get(rank, 0.0), now + took / _SHARE - took)
            if turn.sample is not None:
                self._failed.clear()
            else:
                self._failed[rank] += 1
            self.available = self.available and self._failed[rank] < _ATTEMPTS
            if turn.sample is not None and any(t.waits_for is Wait.CHILD for t in turn.sample.judged()):
                self._begin_children(turn, pid, now)
        for dump in [dump for dump in turn.children if dump.over(now)]:
            turn.children.remove(dump)
            threads = self._threads(dump)
            dump.close()
            if main := threads.get(dump.pid):
                turn.mains[dump.pid] = main
            else:
                self._refused[dump.pid] = self._refused.get(dump.pid, 0) + 1
        if turn.children:
            return
        del self._rounds[rank]
        if turn.sample is not None:
            self.samples[rank] = _with_children(turn)

    def _begin_children(self, turn: _Round, pid: int, now: float) -> None:
        program = pyspy()
        turn.pids = kernel.descendants(pid)[:_CHILDREN]
        for child in turn.pids if program is not None else ():
            if self._refused.get(child, 0) < _REFUSALS:
                with contextlib.suppress(OSError):
                    turn.children.append(Dump(program or "", child, now))

    def _of_rank(self, dump: Dump) -> Sample | None:
        threads = self._threads(dump)
        main = threads.pop(dump.pid, None)
        if main is None:
            return None
        return Sample(
            at=dump.began,
            main=main,
            beside=tuple(threads[thread] for thread in sorted(threads)),
            unknown=waits.stranger(dump.pid, {dump.pid, *threads}),
            cpu=kernel.glance(dump.pid).cpu,
            moved=waits.moved(dump.pid, dump.pid),
            traced=kernel.traced(dump.pid),
            gpu=kernel.has_gpu(dump.pid),
        )

    def _threads(self, dump: Dump) -> dict[int, Thread]:
        """The threads by their kernel number."""
        found = {}
        for told in dump.result():
            with contextlib.suppress(KeyError, TypeError, ValueError):
                number = int(told["os_thread_id"])
                found[number] = self._thread(dump.pid, number, told)
        return found

    def _thread(self, pid: int, number: int, told: dict[str, Any]) -> Thread:
        frames = tuple(Frame(f["name"], f["filename"], int(f["line"])) for f in told["frames"])
        own = [
            tuple((v["name"], v["repr"]) for v in f["locals"] or ()) if not frame.installed else ()
            for f, frame in zip(told["frames"], frames, strict=True)
        ]
        wait = waits.of(pid, number)
        thread = Thread(frames, hash(tuple(own[1:])), hash(tuple(own[:1])), bool(told["owns_gil"]), wait)
        if wait is not Wait.NONE or not frames:
            return thread
        loop, plain = about(self._folder, frames[0].file, frames[0].line)
        return replace(thread, loop=loop, plain=plain)


def _with_children(turn: _Round) -> Sample:
    sample = turn.sample
    assert sample is not None
    found = [(pid, stat(pid)) for pid in turn.pids]
    children = tuple(Child(pid, seen.cpu, turn.mains.get(pid)) for pid, seen in found if seen is not None)
    return replace(sample, children=children)
