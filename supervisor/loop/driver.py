"""The loop: look, let the core decide, do what it says, sleep until something ends, a timer is due or a signal comes."""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from supervisor.attempt.attempt import Attempt, sweep
from supervisor.attempt.evidence import Witness
from supervisor.attempt.watch import Watch
from supervisor.core import machine
from supervisor.core.evidence import Evidence
from supervisor.core.failures import Failures
from supervisor.core.hangs.timings import Pace
from supervisor.core.model import Action, DumpStacks, Emit, End, History, Launch, Observation, Reach, Rollback, Send
from supervisor.core.poll_interval import CALM, poll_interval
from supervisor.group.launch import Order
from supervisor.group.standby import SETTLED, Standby
from supervisor.loop.adopt import Takeover
from supervisor.loop.fault_injector import FaultInjector
from supervisor.loop.flush import Flusher
from supervisor.loop.narrator import Narrator
from supervisor.loop.stop_requests import Stops, signals
from supervisor.process.kill import end_all
from supervisor.process.proctree import become_subreaper
from supervisor.process.reaper import Reaper
from supervisor.run.events import EventLog
from supervisor.run.folder.anchor import Anchor, Moved, Removed
from supervisor.run.hang_limits import Paces
from supervisor.run.own_saves import sweep_beside, written_beside
from supervisor.run.previous import Previous
from supervisor.run.program import Program
from supervisor.run.spec import Spec
from trainer.checkpoint.memory import snapshots
from trainer.rundir.codes import ExitCode
from trainer.rundir.layout import RunDir, committed_steps
from trainer.rundir.machine.shm import segment_of


@dataclass
class Driver:
    """One supervisor's life with one run. The caller holds the run's lock."""

    run: RunDir
    spec: Spec
    log: EventLog
    environ: Mapping[str, str]
    previous: Previous = field(default_factory=Previous)
    history: History = field(default_factory=History)
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = lambda: random.uniform(-1.0, 1.0)

    def __post_init__(self) -> None:
        self.stops = Stops()
        self.why = ""
        """Why the run is to stop, where that is not said by who asks."""
        self._policy = self.spec.policy
        self._attempt: Attempt | None = None
        self._launched = False
        """Whether there is an attempt of this request, ours or adopted."""
        self._failures = Failures()
        self._program = Program(self.run, self.spec)
        self._reaper = Reaper()
        self._ended: End | None = None
        self._witnesses: list[Witness] = []
        """Of attempts that are over, and whose evidence is not on disk yet."""
        self._first_step_at: float | None = None
        story = self.previous.story
        told = self.previous.checkpoints if self.previous.unfinished else None
        self._narrator = Narrator(self.run, self.log, story.high_step, told)
        self._flusher = Flusher(self.run, self.spec.mark, self._narrator)
        fired, armed = self.previous.faults_fired, self.previous.faults_armed
        self._injector = FaultInjector(self.run.faults, self.run.checkpoints, fired, armed)

    def drive(self) -> End:
        """The run is over and nothing of it is alive, unless the End says that something could not be killed."""
        become_subreaper()
        with signals(self.stops) as wakeup, contextlib.closing(Anchor(self.run.path)) as anchor:
            paces = Paces(self.run)
            state = self._take_up(paces.last())
            ended: set[int] = set()
            while self._ended is None:
                if not anchor.holds():
                    self._quit(anchor)
                try:
                    seen = self._look(state, ended)
                except (OSError, MemoryError) as error:
                    self._blind(error)
                    continue
                state, actions = machine.step(self._policy, state, seen, self.jitter())
                if state.verdict is not None and self._attempt is not None and self._attempt.witness is not None:
                    self._attempt.witness.verdict = state.verdict
                for action in actions:
                    try:
                        self._perform(action)
                    except (OSError, MemoryError) as error:
                        self._blind(error)
                if self._ended is None:
                    self.log.sync()
                    paces.keep(state.hang.pace, seen.now)
                    ended = self._sleep(state, wakeup)
            paces.write(state.hang.pace)
            self._standby.close()
            if self._ended.exit_code != ExitCode.STUCK:
                self._flusher.finish()
            # What could not be killed has had its time.
            time_limit = 1.0 if self._ended.exit_code == ExitCode.STUCK else self._policy.stuck_after
            left = end_all(self.spec.mark, set(), self._reaper, time_limit)
            if left and self._ended.exit_code != ExitCode.STUCK:
                self._ended = machine.stuck(left, time_limit)
        return self._finish(self._ended)

    def _blind(self, error: Exception) -> None:
        """There are no descriptors, or there is no memory, to look or act with: training goes on, and we try again soon."""
        text = f"the supervisor cannot look after the run ({error}), and tries again; training goes on"
        self._narrator.once(f"blind {type(error)}", "warning", level="warning", text=text)
        time.sleep(CALM)

    def living(self) -> int:
        """How many ranks of the attempt are alive, as far as is known."""
        watch = self._attempt.watch if self._attempt is not None else None
        return sum(Path(f"/proc/{process.pid}/exe").exists() for process in watch.ranks.values()) if watch else 0

    def _quit(self, anchor: Anchor) -> NoReturn:
        """Nothing of a run whose folder has gone elsewhere is alive, so that nothing is written in two places."""
        end_all(self.spec.mark, set(), self._reaper, self._policy.stuck_after)
        self._standby.close()
        self._flusher.abandon()
        if (path := anchor.found()) is not None:
            raise Moved(path)
        snapshots.remove(segment_of(self.spec.mark))
        raise Removed(
            f"{self.run.path} was removed while its run was alive; that is ended, and there is nothing to resume"
        )

    # ── take up ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _take_up(self, pace: Pace) -> machine.State:
        """The living attempt of a supervisor that died goes on as ours; else nothing of one is left."""
        now = self.clock()
        takeover = Takeover(self.run, self.spec, self.log, self.previous, self._narrator, self._flusher, self._reaper)
        self._attempt = takeover.adopt(now)
        if self._attempt is None and (left := takeover.clear(self.stops)):
            self._ended = machine.stuck(left, self._policy.stuck_after)
        gate = self._attempt.gate if self._attempt is not None else None
        self._standby = Standby(self.spec, self.run, self.environ, self.log, gate)
        if self._attempt is None:
            return machine.begin(self.previous.last_attempt, self.history, pace, self._narrator.high_step)
        self._launched = True
        verdict = self.previous.verdict()
        state, actions = machine.adopt(self._attempt.number, self.history, pace, self.previous.began(now), now, verdict)
        for action in actions:
            self._perform(action)
        return state

    # ── look ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self, state: machine.State, ended: set[int]) -> Observation:
        now = self.clock()
        self._reaper.reap()
        self.stops.read(self.run.stop)
        attempt = self._attempt
        stopping = state.mode is machine.Mode.STOPPING
        self._standby.tick(now, ended, self._settled(state, now))
        if attempt is not None and state.mode is machine.Mode.RUNNING:
            self._raise_up(attempt, now)
        self._flusher.tick(ended, state.mode is machine.Mode.RUNNING and state.stepped)
        alive = tuple(p.pid for p in attempt.members(self._spared())) if attempt is not None and stopping else ()
        over = stopping and not alive
        watch = attempt.watch if attempt is not None else None
        if watch is not None:
            watch.look(now, ended)
            watch.read_journals(now, final=over)
            self._narrator.tell(watch, self.spec.nproc)
            self._narrator.tell_saves(watch.saves, now, final=over)
            self._meddle(watch)
        running = state.mode is machine.Mode.RUNNING
        if running and state.stepped:
            self._keep_evidence()
        if attempt is not None:
            self._program.hear(self.run.attempt(attempt.number).program)
        self._narrator.scan(now, final=over)
        return Observation(
            now=now,
            ranks=watch.views() if watch else (),
            steps=watch.steps() if watch else {},
            group=watch.group() if watch else None,
            exits=tuple(watch.exits) if watch else (),
            raised=tuple(watch.raised) if watch else (),
            alive=alive,
            checkpoint_step=self._safe_step(over),
            checkpoints=tuple(committed_steps(self.run.checkpoints)) if over else (),
            saves=watch.saved() if watch else 0,
            own_step=self._own_step(watch) if watch else -1,
            own_unplaced=watch.saved_unplaced() if watch else False,
            safe_step=self._near_step(watch, now),
            standby=self._standby.warm,
            stacks=attempt.stacks if attempt else None,
            log_grew_at=watch.log_grew_at if watch else 0.0,
            launch_error=attempt.error if attempt else "",
            evidence=attempt.hear() if attempt and running else Evidence(),
            stop=self.stops.kind,
            stop_now=self.stops.now,
        )

    def _safe_step(self, over: bool) -> int:
        """The newest step that nothing but the loss of the machine can take away: on disk, or in memory for good."""
        return max(self._narrator.checkpoint, self._flusher.newest() if over else -1)

    def _near_step(self, watch: Watch | None, now: float) -> int:
        """The newest step that a restart could go on from by now, also from memory or from a save of the script's own."""
        if watch is None:
            return self._narrator.checkpoint
        own = watch.saves.step if watch.from_step() is not None else -1
        return max(self._narrator.checkpoint, own, self._flusher.newest() if watch.quiet(now) else -1)

    def _own_step(self, watch: Watch) -> int:
        """The newest step that the script has kept by itself, as a save of it says, or that a start from it has shown."""
        shown = watch.from_step() or 0
        return max(watch.saves.step, shown) or -1

    def _spared(self) -> set[int]:
        """Processes of the run that belong to no attempt."""
        return self._standby.spared() | self._flusher.pids()

    def _settled(self, state: machine.State, now: float) -> bool:
        """Whether the attempt trains, and has done so for long enough not to be held up by the making of the next."""
        if state.mode is not machine.Mode.RUNNING or not state.stepped:
            self._first_step_at = None
            return False
        self._first_step_at = self._first_step_at or now
        return now >= self._first_step_at + SETTLED

    def _raise_up(self, attempt: Attempt, now: float) -> None:
        if attempt.raise_up(self._standby, now):
            self._narrator.started(attempt, self.spec.nproc)

    def _meddle(self, watch: Watch) -> None:
        armed, fired = self._injector.news()
        self._narrator.faults(armed, fired)
        if self._injector.ripen(self._narrator.high_step, self._standby.is_warming()) or armed:
            watch.ask_faults()
        supervision = {"kill-launcher": watch.launcher, "kill-flush": self._flusher.process}
        self._injector.fire(watch.beats, watch.ranks, supervision, self.log.attempt)

    # ── act ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _perform(self, action: Action) -> None:
        match action:
            case Launch(number, rollback):
                self._launch(number, rollback)
            case Send(name, reach):
                self._send(name, reach)
            case DumpStacks():
                if self._attempt is not None and (dumped := self._attempt.dump()):
                    self._narrator.stacks(dumped)
            case Emit("group_gone", _, fields):
                self._narrator.once("gone", "group_gone", **fields)
            case Emit(event, level, fields):
                self.log.emit(event, level, **fields)
            case End():
                self._ended = action

    def _launch(self, number: int, rollback: Rollback | None) -> None:
        self._leave()
        self._narrator.new_attempt(number)
        # `never` is about what was there at the launch; what this run has saved since is its own.
        first, self._launched = not self._launched, True
        if not first:
            self._flusher.attempt_died()
        if rollback is not None and rollback.attempt == number - 1:
            self._flusher.abandon()
        resume = self.spec.resume if first else "auto"
        relaunch = not first or self._narrator.checkpoint >= 0
        self._narrator.program_changed(self._program.launched())
        now = self.clock()
        self._failures.launched(now)
        order = Order(number, resume, relaunch, rollback, self._flusher.took, self._failures.mtbf())
        self._attempt = Attempt(self.run, self.spec, order, self._reaper, now)
        self._raise_up(self._attempt, now)

    def _leave(self) -> None:
        """The attempt is left. Its evidence is written once the next one trains, so that the recovery has the machine for
        itself."""
        if self._attempt is None:
            return
        self._keep_evidence()
        self._attempt.leave()
        if self._attempt.witness is not None:
            self._witnesses.append(self._attempt.witness)

    def _keep_evidence(self) -> None:
        while self._witnesses:
            self._witnesses.pop().write()

    def _send(self, name: str, reach: Reach) -> None:
        if self._attempt is None:
            return
        if sent := self._attempt.send(name, reach, self._spared(), self.clock()):
            self._narrator.once(f"signal {name}", "signal_sent", signal=f"SIG{name}", to=reach.value, processes=sent)

    # ── sleep ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _sleep(self, state: machine.State, wakeup: int) -> set[int]:
        """Returns the pidfds that are readable: which processes have ended."""
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        watch = self._attempt.watch if self._attempt else None
        fds = [*self._standby.fds(), *self._flusher.fds(), *(watch.fds() if watch else [])]
        for fd in fds:
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(poll_interval(state, self.clock()) * 1000)}
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 4096)
        return ready & set(fds)

    def _finish(self, end: End) -> End:
        if self.why and end.exit_code == ExitCode.STOPPED:
            end = replace(end, reason=f"{end.reason}: {self.why}")
        if self._attempt is not None and self._attempt.witness is not None:
            self._witnesses.append(self._attempt.witness)
        self._keep_evidence()
        for number in self.run.attempts():
            sweep(self.run, number)
            sweep_beside(written_beside(self.run, number), self.spec.mark)
        level = "info" if end.exit_code == 0 else "error"
        self.log.emit(
            "run_ended",
            level,
            exit_code=end.exit_code,
            state=end.state,
            step=self._narrator.high_step if self._narrator.placed else -1,
            checkpoint_step=self._narrator.checkpoint,
            reason=end.reason,
        )
        self.log.sync()
        # Not before that is told: until then a new supervisor may have to know this attempt's group.
        if self._attempt is not None:
            self._attempt.leave()
        shutil.rmtree(self.run.standby, ignore_errors=True)
        return end
