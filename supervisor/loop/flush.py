"""The flush process: it makes durable checkpoints of snapshots, one at a time, also after the ranks have died."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from supervisor.core.telling.news import Note
from supervisor.group.fork_server import Fork
from supervisor.loop import flush_report
from supervisor.process import proctree
from supervisor.process.kernel import glance
from supervisor.process.kill import kill
from supervisor.process.proctree import Process
from supervisor.run.checkpoints import FLUSH, KEEP_ALL, flush_arguments, flush_command
from trainer.checkpoint.disk import retention
from trainer.checkpoint.memory import snapshots
from trainer.rundir import variables as names
from trainer.rundir.files.durable import DISK
from trainer.rundir.layout import RunDir, committed_steps, newest_checkpoint
from trainer.rundir.machine.shm import segment_of

_TIME_LIMIT = 120.0
"""Seconds for the last flush of a run that is over."""
_STOPPED, ANSWERS = 1.0, 2.0
"""Seconds after which a stopped flush is given up, and that a fork server, which may stand still, has to tell of a
forked one. That one finds the work done later."""
_MADE = 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """A flush that is wanted. `step` None means the newest snapshot, if it is newer than the checkpoints. `again`: one
    flush of it has died."""

    step: int | None
    keep: int
    again: bool = False


Forks = Callable[[str, list[str], str], Fork | None]
Outcome = dict[str, Any]
"""The report of a flush (`step`, and `error`, or `bytes`, `seconds`, `existed`), by itself or by us."""


class Flusher:
    """Makes the wanted flushes, one after another, and reports the end of each.

    A pinned snapshot must get to the disk. The ranks' note says so; if a rank or a supervisor died before the note was
    read, the pin alone does. A flush that dies is made again, once. A flush that is not made is told.
    """

    def __init__(self, run: RunDir, mark: str, forks: Forks = lambda *_: None) -> None:
        """`forks` runs a program of ours as a fork of the fork server, if there is one: Standby.run()."""
        self._run, self._mark, self._forks = run, mark, forks
        self._ordered: Fork | None = None
        """The flush that is ordered from the fork server, as long as nobody knows its pid."""
        self.segment = segment_of(mark)
        self._wanted: list[Wanted] = []
        self._keep = KEEP_ALL
        self._stalls: dict[int, float] = {}
        """For each step to flush: the seconds of stall before it."""
        self._done = -1
        """The newest step that a flush has made durable."""
        self._made: deque[int] = deque(maxlen=_MADE)
        self._after_crash = self._training = False
        self._had = False
        """Whether the ranks had snapshots. Ranks that make no more empty the folder, and leave it."""
        self.process: Process | None = None
        """The one flush under way."""
        self._under_way = Wanted(None, KEEP_ALL)
        """The work of the running flush."""
        self._stopped_since: dict[int, float] = {}
        self._began = 0.0
        self.took: float | None = None
        """Seconds that the newest successful flush took, with the start of its process."""
        self._stdout: Any = None
        """What the running flush prints to."""
        self._late: list[Fork] = []
        """Ordered flushes that were not waited for any longer. They may still begin."""
        self._said = ""
        """The last output of a flush that died."""
        self._inherited: list[Process] = []
        """Flushes of a dead supervisor. They end by themselves, and their checkpoints are found on the disk."""

    def inherit(self, training: bool) -> None:
        """Keeps the snapshot that a dead supervisor's flush reads, until that flush is over. `training`: the attempt
        lives on."""
        self._training = training
        for process in proctree.marked(f"{self._mark}.flush"):
            with contextlib.suppress(ProcessLookupError):
                self._inherited.append(Process(process.pid))
        if not self._inherited:
            self._take_pins()

    def _take_pins(self) -> None:
        """Work that a dead supervisor or its flush has left undone will be done."""
        if self._training:
            self._want_pinned()
        elif snapshots.pinned(self.segment):
            self._after_crash = True

    def _want(self, step: int | None, again: bool = False) -> None:
        if all(wanted.step != step for wanted in self._wanted):
            self._wanted.append(Wanted(step, self._keep, again))

    def _want_pinned(self) -> None:
        for step in snapshots.pinned(self.segment):
            if self.process is None or step != self._under_way.step:
                self._want(step)

    def hear(self, notes: Iterable[Note], again: bool = False) -> None:
        """Notes the flushes that the ranks ask for. `again`: a dead supervisor may have read the note, begun the flush,
        or even ended it. A pin tells."""
        for _, note in notes:
            if note["kind"] == "flush_due":
                step, self._keep = int(note["step"]), note.get("keep") or self._keep
                if isinstance(stall_s := note.get("stall_s"), int | float):
                    self._stalls[step] = stall_s
                if not again:
                    self._want(step)
            elif note["kind"] == "checkpoint_saved" and type(saved := note.get("step")) is int:
                self._made.append(saved)
            elif note["kind"] == "resumed" and type(start := note.get("step")) is int:
                self._done = min(self._done, start)  # what is newer than that is to be made again

    def attempt_died(self) -> bool:
        """Makes the dead attempt's newest snapshot durable, after the next attempt's first step. Until then that
        attempt needs the machine for itself. Returns whether somebody has removed the snapshots."""
        self._after_crash = True
        removed = self._had and not self.segment.exists()
        self._had = self._had and not removed
        return removed

    def newest(self) -> int:
        """The newest snapshot that all ranks have, or -1."""
        step = snapshots.newest_snapshot(self.segment)
        return -1 if step is None else step

    def tick(self, ended: set[int], stepped: bool) -> Iterator[Outcome | None]:
        """Yields the outcome of each ended flush, or None if nobody could read it (its checkpoint is on the disk). Then
        the next flush is running. `stepped`: the attempt has made its first step."""
        self._had = self._had or self.segment.exists()
        if self._after_crash and stepped:
            self._after_crash = False
            newer = bool(self._wanted)
            self._want_pinned()
            if not newer:
                self._want(None)
        yield from self._go_on(ended)

    def _go_on(self, ended: set[int]) -> Iterator[Outcome | None]:
        self._end_stopped(time.monotonic())
        yield from self._look_for_fork()
        if self.process is not None and self.process.fd in ended:
            yield from self._conclude()
        for inherited in [process for process in self._inherited if process.fd in ended]:
            inherited.close()
            self._inherited.remove(inherited)
            yield None
            if not self._inherited:
                self._take_pins()
        while self._wanted and not self.fds() and self._ordered is None:
            wanted = self._wanted.pop(0)
            if self._is_of_use(wanted):
                yield from self._start(wanted)
            elif wanted.step is not None:
                snapshots.clear_pins(self.segment, wanted.step)

    def _is_of_use(self, wanted: Wanted) -> bool:
        if wanted.step is None:
            return self.newest() > self._done
        # It was made already, as the newest one or by the ranks. An older one would be pruned at once.
        there = committed_steps(self._run.checkpoints)
        is_new = wanted.step not in self._made or wanted.step not in there
        return is_new and sum(step > wanted.step for step in there) < wanted.keep

    def _conclude(self) -> Iterator[Outcome]:
        """Handles the end of the running flush. It is made again if it has died."""
        wanted, outcome = self._under_way, self._outcome()
        if outcome is not None:
            if outcome.get("existed") and self._is_untold(outcome["step"]):
                outcome.pop("existed")
            if "error" not in outcome:
                self._done = max(self._done, int(outcome["step"]))
                self._made.append(int(outcome["step"]))
            if "seconds" in outcome:
                self.took = time.monotonic() - self._began
            yield self._with_stall(outcome)
            return
        # A rank that restored before the kernel was done with it has left its folder alone.
        with contextlib.suppress(OSError):
            retention.sweep_flushes(self._run.checkpoints, DISK)
        if wanted.again:
            yield self._failed(wanted, f"the flush process died twice{self._said}")
        else:
            self._wanted.insert(0, replace(wanted, again=True))
            yield self._with_stall({"step": wanted.step, "error": f"the flush process died{self._said}; once more"})

    def _is_untold(self, step: Any) -> bool:
        """Whether that checkpoint was made by a flush that died before it could say so, or was forked late."""
        return step not in self._made and step in committed_steps(self._run.checkpoints)

    def _with_stall(self, outcome: Outcome) -> Outcome:
        stall_s = self._stalls.pop(outcome.get("step", -1), 0.0)
        return {**outcome, "stall_s": stall_s} if stall_s else outcome

    def _failed(self, wanted: Wanted, error: str) -> Outcome:
        """The wanted flush will not be made: its pin is removed."""
        if wanted.step is not None:
            snapshots.clear_pins(self.segment, wanted.step)
        return self._with_stall({"step": wanted.step, "error": error})

    def _end_stopped(self, now: float) -> None:
        """Ends a flush that somebody has stopped. It holds its pin and, with "auto", delays all later flushes."""
        for process in self._all():
            if glance(process.pid).state not in "Tt":
                self._stopped_since.pop(process.pid, None)
            elif now >= self._stopped_since.setdefault(process.pid, now) + _STOPPED:
                kill([process])

    def abandon(self) -> None:
        """Drops all flushes, running or wanted. The state in memory may be the bad state that the run goes back
        from."""
        self._wanted, self._done = [], -1
        self._made.clear()
        self._kill()
        while self._inherited:
            self._inherited.pop().close()

    def _kill(self) -> None:
        """No flush of ours is running. Its snapshot stays pinned."""
        until = time.monotonic() + ANSWERS
        while self._ordered is not None and time.monotonic() < until:
            if (pid := self._ordered.pid()) is None:
                time.sleep(0.001)
                continue
            self._ordered = None
            with contextlib.suppress(ProcessLookupError):
                self.process = Process(pid) if pid else None
        kill(self._all(), within=1.0)
        if self.process is not None:
            self._outcome()

    def fds(self) -> list[int]:
        """The descriptors that are readable when a flush has ended."""
        return [process.fd for process in self._all()]

    def pids(self) -> set[int]:
        return {process.pid for process in self._all()}

    def _all(self) -> list[Process]:
        return self._inherited + ([self.process] if self.process is not None else [])

    def finish(self, sweep: bool = True) -> Iterator[Outcome | None]:
        """Promised snapshots, and a snapshot newer than the checkpoints, become durable. Yields the outcome of each
        flush. With `sweep` no rank is alive, and then nothing half written is left among the checkpoints."""
        self._want_pinned()
        if self.newest() > newest_checkpoint(self._run.checkpoints):
            self._want(None)
        until = time.monotonic() + _TIME_LIMIT
        ended: set[int] = set()
        while True:
            yield from self._go_on(ended)
            if not (self.fds() or self._ordered) or time.monotonic() > until:
                break
            poll = select.poll()
            for fd in self.fds():
                poll.register(fd, select.POLLIN)
            ended = {fd for fd, _ in poll.poll(100 if self._ordered is None else 1)}
        late = [self._under_way, *self._wanted] if self.process is not None else self._wanted
        self._kill()
        for wanted in [wanted for wanted in late if wanted.step is not None]:
            yield self._failed(wanted, f"its flush did not end within {_TIME_LIMIT:.0f} s")
        if sweep:
            self.sweep()

    def sweep(self) -> None:
        """Nothing half written is left among the checkpoints, but of a living flush. No rank is alive."""
        with contextlib.suppress(OSError):
            retention.sweep(self._run.checkpoints, DISK)

    def leave(self, parts: bool = False) -> int | None:
        """Removes all snapshots and returns None. If one is newer than the checkpoints, it stays, and its step is
        returned. With `parts` that also counts which is spread over nodes, and which none of them could save."""
        step = max(self.newest(), snapshots.newest_part(self.segment, some=True) if parts else -1)
        if step > newest_checkpoint(self._run.checkpoints):
            return step
        snapshots.remove(self.segment)
        return None

    def _start(self, wanted: Wanted) -> Iterator[Outcome]:
        """The flush has begun, or is ordered. As a fork it takes a tenth of a second less: Python and its imports."""
        self._began, self._under_way = time.monotonic(), wanted
        arguments = flush_arguments(self.segment, self._run, wanted.step, wanted.keep)
        if not wanted.again and (ordered := self._forks(FLUSH, arguments, f"{self._mark}.flush")) is not None:
            self._ordered, self._stdout = ordered, ordered.out
            return
        yield from self._start_alone(wanted)

    def _look_for_fork(self) -> Iterator[Outcome]:
        """The ordered flush is held as soon as it has a pid. If it will never have one, it starts alone."""
        if self._ordered is None:
            return
        if (pid := self._ordered.pid()) is None and time.monotonic() < self._began + ANSWERS:
            return
        ordered, self._ordered = self._ordered, None
        try:
            if pid:
                self.process = Process(pid)
                return
        except ProcessLookupError:
            # It is over and reaped: what it has printed tells the rest.
            yield from self._conclude()
            return
        self._late.append(ordered)
        yield from self._start_alone(self._under_way)

    def _start_alone(self, wanted: Wanted) -> Iterator[Outcome]:
        try:
            process = subprocess.Popen(
                flush_command(self.segment, self._run, wanted.step, wanted.keep),
                env={**os.environ, names.MARK: f"{self._mark}.flush"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            yield self._failed(wanted, f"no flush process: {error}")
            return
        self._stdout, self.process = process.stdout, Process(process.pid)
        process.returncode = 0

    def _outcome(self) -> dict[str, Any] | None:
        """The report of the flush; None if it died before it could report."""
        text = flush_report.printed(self._stdout)
        if self.process is not None:
            self.process.close()
            self.process = None
        if (outcome := flush_report.of(text)) is None:
            self._said = f": {text[-500:]}" if text else ""
        return outcome
