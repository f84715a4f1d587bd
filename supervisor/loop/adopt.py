"""The takeover after a supervisor died: it adopts the living attempt, or ends the rest of it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from supervisor.attempt import steps
from supervisor.attempt.attempt import Attempt
from supervisor.attempt.records import Notes
from supervisor.core.actions import Emit
from supervisor.core.machine import Mode
from supervisor.core.telling.news import Note
from supervisor.group.group import WorkerGroup
from supervisor.group.launch import Order, is_as_asked, release
from supervisor.loop.flush import Flusher
from supervisor.loop.narrator import Narrator
from supervisor.loop.tracker import Tracker
from supervisor.process import proctree
from supervisor.process.kill import end_all
from supervisor.process.proctree import Process
from supervisor.process.reaper import Reaper
from supervisor.run.folder.stops import Stops
from supervisor.run.previous import Previous
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir
from trainer.rundir.records.beats import last_beats

_LOOK_EVERY = 0.1


@dataclass(frozen=True, slots=True)
class Takeover:
    """Adopts or clears, once, before anything is launched."""

    run: RunDir
    spec: Spec
    previous: Previous
    tracker: Tracker
    narrator: Narrator
    flusher: Flusher
    reaper: Reaper
    helpers: frozenset[int] = frozenset()
    """Processes of ours that began before."""

    def adopt(self, now: float) -> Attempt | None:
        """Adopts the attempt of a dead supervisor, with its verdict and all that the events tell of it. None if there
        is none."""
        previous = self.previous
        group = self._group()
        if group is None:
            return None
        # It has its release: nobody asks for another one.
        order = Order(previous.last_attempt)
        attempt = Attempt(
            self.run, self.spec, order.attempt, lambda: release(self.spec, self.run, order, ""), self.reaper, now
        )
        try:
            attempt.adopt(group)
        except (OSError, ValueError):
            group.abandon()
            return None
        self.narrator.go_on(previous.events)
        if previous.told("attempt_started") is None:
            self.narrator.started(attempt, self.spec.nproc, self.tracker.progress.checkpoint)
        assert attempt.watch is not None
        attempt.watch.ask_faults()
        seen, news = attempt.look(now, set(), Mode.RUNNING, set())
        verdict = previous.verdict()
        pids = [process.pid for _, process in sorted(attempt.watch.ranks.items())]
        about = {
            "step": max(seen.steps.values(), default=-1),
            "launcher_pid": attempt.launcher_pid,
            "pids": pids,
            "verdict": verdict.cause.value if verdict else None,
        }
        self.narrator.tell([Emit("adopted", "warning", about)])
        self.tracker.see(news, attempt.number, self.spec.nproc)
        self.tracker.catch_up()
        self.flusher.hear(news.notes, again=True)
        self.flusher.inherit(training=verdict is None)
        return attempt

    def _group(self) -> WorkerGroup | None:
        """The group of the last attempt, to be adopted."""
        previous = self.previous
        if not previous.unsettled or self.spec.resume == "never":
            return None
        for folder in self.run.standby.glob("[0-9]*"):
            found = WorkerGroup.released(folder, self.spec.mark)
            if found is None:
                continue
            group, body = found
            known = group.launcher is not None or group.gate.launcher_report.exists() or previous.verdict() is not None
            if body.attempt == previous.last_attempt and is_as_asked(self.spec, body) and known:
                return group
            group.abandon()
        return None

    def clear(self, stops: Stops) -> tuple[int, ...]:
        """No process of an earlier supervisor's attempt is alive: two groups must never run at once. The news of that
        attempt is told. Returns the pids that could not be killed. Ranks that were asked to stop get their grace."""
        last = self.previous.last_attempt
        self.narrator.go_on(self.previous.events)
        if self._is_first():
            self.tracker.catch_up()
            return ()
        folder = self.run.attempt(last)
        ranks = [*range(self.spec.nproc), *(beat.rank for beat in last_beats(folder.beats))]
        notes = Notes(folder.notes)
        self._hear(notes.read(ranks))
        self.flusher.inherit(training=False)
        spared = self.flusher.pids() | self.helpers
        leftovers = proctree.members(self.spec.mark, spared)
        step = steps.last(folder)
        if asked := bool(leftovers and stops.kind is not None):
            assert stops.kind is not None
            asked_by = {"by": stops.kind.value, "step": step, "now": stops.now}
            self.narrator.tell([Emit("stop_requested", fields=asked_by)])
            self._ask(stops, spared)
            step = max(step, steps.last(folder))
            leftovers = proctree.members(self.spec.mark, spared)
        if leftovers or asked or self.previous.unfinished:
            self.tracker.reached(step)
            self.narrator.tell([Emit("takeover", "warning", {"killed": len(leftovers), "step": step})])
        left = end_all(self.spec.mark, spared, self.reaper, self.spec.policy.stuck_after)
        self._hear(notes.read(ranks))
        self.tracker.catch_up()
        if self.spec.resume == "never":
            self.tracker.begin_anew()
        return left

    def _is_first(self) -> bool:
        """Whether no supervisor of this run can have started a process. Then nobody reads all of /proc for one."""
        made = (self.run.standby, self.run.attempts_folder)
        return self.previous.story.started is None and not any(folder.exists() for folder in made)

    def _hear(self, notes: Sequence[Note]) -> None:
        self.tracker.hear(notes)
        self.flusher.hear(notes, again=True)

    def _ask(self, stops: Stops, spared: set[int]) -> None:
        """Sends one TERM to each rank whose launcher is gone, and gives them time to act on it."""
        ranks = set[int]()
        for beat in last_beats(self.run.attempt(self.previous.last_attempt).beats):
            with contextlib.suppress(ProcessLookupError), closing(Process.as_of(beat.pid, beat.at)) as process:
                if proctree.carries(beat.pid, self.spec.mark) and process.send(signal.SIGTERM):
                    ranks.add(beat.pid)
        until = time.monotonic() + self.spec.policy.grace
        while not stops.now and time.monotonic() < until:
            self.reaper.reap()
            if not {process.pid for process in proctree.members(self.spec.mark, spared)} & ranks:
                return
            stops.read(self.run.stop)
            time.sleep(_LOOK_EVERY)
