"""The heir of a supervisor that died: it takes up the attempt that lives on, or ends what is left of it."""

from __future__ import annotations

from dataclasses import dataclass

from supervisor import proctree
from supervisor.attempt import Attempt
from supervisor.chronicle import Chronicle
from supervisor.events import EventLog
from supervisor.flush import Flusher
from supervisor.launch import Order
from supervisor.legacy import Legacy
from supervisor.spec import Spec
from supervisor.watch import Notes, last_beat
from trainer.rundir.layout import RunDir


@dataclass(frozen=True, slots=True)
class Heir:
    """Adopts, or clears: one of the two, once, before anything is launched."""

    run: RunDir
    spec: Spec
    log: EventLog
    legacy: Legacy
    chronicle: Chronicle
    flusher: Flusher
    reaped: dict[int, int]

    def adopt(self, now: float) -> Attempt | None:
        """The attempt of a supervisor that died goes on as ours, with all that it and its verdict were told to be; None
        if there is none to adopt."""
        legacy = self.legacy
        gang = legacy.gang(self.run, self.spec)
        if gang is None:
            return None
        attempt = Attempt(self.run, self.spec, Order(legacy.last_attempt), now)
        try:
            attempt.adopt(gang, self.reaped)
        except (OSError, ValueError):
            gang.abandon()
            return None
        self.chronicle.go_on(legacy.events)
        if legacy.told("attempt_started") is None:
            self.chronicle.started(attempt, self.spec.nproc)
        assert attempt.watch is not None
        attempt.watch.ask_faults()
        attempt.watch.look(now, set())
        attempt.hear()
        verdict = legacy.verdict()
        pids = [process.pid for _, process in sorted(attempt.watch.ranks.items())]
        about = {
            "launcher_pid": attempt.launcher_pid,
            "pids": pids,
            "verdict": verdict.cause.value if verdict else None,
        }
        self.log.emit("adopted", "warning", step=max(attempt.watch.steps().values(), default=-1), **about)
        self.chronicle.tell(attempt.watch, self.spec.nproc)
        self.chronicle.catch_up()
        self.flusher.inherit(training=verdict is None)
        return attempt

    def clear(self) -> tuple[int, ...]:
        """Nothing of an earlier supervisor's attempt is alive, because two gangs must never run at once, and what it has left
        untold is told; returns the pids that could not be killed."""
        last = self.legacy.last_attempt
        self.chronicle.go_on(self.legacy.events)
        notes = Notes(self.run.attempt(last), self.spec.nproc)
        self.chronicle.hear(notes.read())
        self.flusher.inherit(training=False)
        spared = self.flusher.pids()
        leftovers = proctree.members(self.spec.mark, spared)
        if leftovers or self.legacy.unfinished:
            step = last_beat(self.run.attempt(last))
            self.chronicle.high_step = max(self.chronicle.high_step, step)
            self.log.emit("takeover", "warning", killed=len(leftovers), step=step)
        left = proctree.end_all(self.spec.mark, spared, self.reaped, self.spec.policy.stuck_after)
        self.chronicle.hear(notes.read())
        self.chronicle.flush_due = None
        self.chronicle.catch_up()
        return left
