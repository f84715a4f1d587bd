"""The loop: look, tell the news, let the core decide, carry out its actions, sleep until something ends or is due."""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from supervisor.attempt.attempt import Attempt
from supervisor.attempt.kernel_log import pids_are_ours
from supervisor.core import machine
from supervisor.core.actions import Action, DumpStacks, Emit, End, Launch, Reach, Send
from supervisor.core.diagnosis.presence import all_left_with_0
from supervisor.core.hangs.timings import Pace
from supervisor.core.machine import Mode
from supervisor.core.model import History, Observation, Rollback, Verdict
from supervisor.core.poll_interval import CALM, poll_interval
from supervisor.core.telling.news import News
from supervisor.core.words import RunState
from supervisor.group.standby import Standby
from supervisor.live.curve import Curve
from supervisor.live.lanes import Lanes
from supervisor.loop.adopt import Takeover
from supervisor.loop.attempts import Attempts
from supervisor.loop.briefer import Briefer
from supervisor.loop.fault_injector import FaultInjector
from supervisor.loop.flush import Flusher
from supervisor.loop.narrator import Narrator
from supervisor.loop.own_saves import OwnSaves
from supervisor.loop.shrink import shrunk, told
from supervisor.loop.sleep import sleep
from supervisor.loop.tracker import Tracker
from supervisor.nodes.lead.others import Alone, Others
from supervisor.nodes.limb import Limb
from supervisor.process.kill import end_all
from supervisor.process.proctree import be_subreaper
from supervisor.process.reaper import Reaper
from supervisor.run.events import EventLog
from supervisor.run.folder.anchor import Anchor, Moved
from supervisor.run.folder.stops import HandedOver, Stops, retried, signals
from supervisor.run.hang_limits import Paces
from supervisor.run.previous import Previous
from supervisor.run.spec import Spec, save
from trainer.checkpoint.memory import snapshots
from trainer.rundir.codes import ExitCode
from trainer.rundir.layout import RunDir, committed_steps


@dataclass
class Driver:
    """The life of one supervisor with one run. The caller holds the run's lock."""

    run: RunDir
    spec: Spec
    log: EventLog
    environ: Mapping[str, str]
    previous: Previous = field(default_factory=Previous)
    history: History = field(default_factory=History)
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = lambda: random.uniform(-1.0, 1.0)
    lead: Callable[[Stops], Others] | None = None
    """Makes the leader of a run over several nodes."""
    senders: Callable[[], set[int]] = set
    """The pids of those that bring the run's messages to people. They outlive every attempt, and the run."""

    def __post_init__(self) -> None:
        self.stops = Stops()
        self._others = self.lead(self.stops) if self.lead is not None else Alone()
        self.why = ""
        """Why the run must stop, if the request does not say it."""
        self._state = machine.State()
        self._ended: End | None = None
        self._narrator = Narrator(self.log)
        self._tracker = Tracker(self.run, self.previous, self._narrator)
        self._reaper = Reaper()
        self._limb = Limb(self.run, self.spec, self.environ, self._helpers)
        self._attempts = Attempts(self.run, self.spec, self._reaper, self._limb)
        self._briefer = Briefer(self._attempts.journals, self.spec, self.log, self.previous.story.since)
        self._flusher = Flusher(self.run, self.spec.mark, lambda *order: self._standby.run(*order))
        self._curve, self._lanes = Curve(self.run), Lanes(self.run)
        self._own_saves = OwnSaves(self.run, self.spec, self.log, self._reaper)
        fired, armed = self.previous.faults_fired, self.previous.faults_armed
        self._injector = FaultInjector(self.run.faults, self.run.checkpoints, fired, armed)

    def drive(self) -> End:
        """Drives the run to its end. No process of it is alive, unless the End says that one could not be killed."""
        be_subreaper()
        with signals(self.stops) as wakeup, contextlib.closing(Anchor(self.run.path, self.log.epoch)) as anchor:
            paces, ended = Paces(self.run), set[int]()
            self._take_up(paces.last())
            while self._ended is None:
                if not anchor.holds():
                    self._quit(anchor)
                if self.stops.leave and self._can_be_left():
                    paces.write(self._state.hang.pace)
                    raise HandedOver
                ended = self._tick(ended, wakeup, paces)
            paces.write(self._state.hang.pace)
            self._ended = self._clear_up(self._ended)
        return self._finish(self._ended)

    def _tick(self, ended: set[int], wakeup: int, paces: Paces) -> set[int]:
        """One turn of the loop. `ended` are the fds that were readable after the last sleep. Returns the next ones."""
        try:
            seen = self._look(ended)
        except (OSError, MemoryError) as error:
            self._blind(error)
            return ended
        self._state, actions = machine.step(self.spec.policy, self._state, seen, self.jitter())
        if self._limb.attempt is not None and self._state.verdict is not None:
            self._limb.attempt.verdict = self._state.verdict
            self._standby.failed(self._state.verdict.cause)
        self._act(actions)
        if self._ended is not None:
            return set()
        self.log.sync()
        paces.keep(self._state.hang.pace, seen.now)
        self._others.state(self._state.mode, self._state.stepped, self._state.unexplained)
        fds = [*self._limb.fds(), *self._flusher.fds(), *self._others.fds()]
        return sleep(poll_interval(self._state, self.clock()), wakeup, fds, self._limb.slow_to_go(self.clock()))

    def _blind(self, error: Exception) -> None:
        """Without descriptors or memory we cannot look or act. Training goes on. We try again soon."""
        text = f"the supervisor cannot look after the run ({error}), and tries again; training goes on"
        self._narrator.warn(text, once=f"blind {type(error)}")
        time.sleep(CALM)

    def _can_be_left(self) -> bool:
        """Whether the next supervisor finds all ranks, or none."""
        running = self._state.mode is Mode.RUNNING and self.living() >= self.spec.nproc
        return self.lead is None and self.stops.kind is None and (running or self._state.mode is Mode.BACKOFF)

    def living(self) -> int:
        """The number of the attempt's ranks that are alive, as far as is known."""
        return self._limb.living()

    def _take_up(self, pace: Pace) -> None:
        """Adopts the living attempt of a dead supervisor, or ends the rest of it."""
        now, previous = self.clock(), self.previous
        parts = (self._tracker, self._narrator, self._flusher, self._reaper, frozenset(self._others.pids()))
        takeover = Takeover(self.run, self.spec, previous, *parts)
        # On several nodes nothing is adopted: what a dead supervisor has left was fenced, or ends now.
        attempt = takeover.adopt(now) if self.lead is None else None
        if attempt is None and (left := takeover.clear(self.stops)):
            self._ended = machine.stuck(left, self.spec.policy.stuck_after)
        self._wait(attempt.gate if attempt else None)
        if attempt is None:
            self._state = machine.begin(previous.last_attempt, self.history, pace, self._tracker.progress.high_step)
            return
        self._attempts.adopt(attempt)
        began, verdict = previous.began(now), previous.verdict()
        self._state, actions = machine.adopt(attempt.number, self.history, pace, began, now, verdict)
        self._act(actions)

    def _wait(self, adopted: Path | None = None) -> None:
        """Groups come from a new standby from now on. `adopted` is the folder of a group that was released before."""
        standby = Standby(self.spec, self.run, self.environ, self.log, adopted, self._others.seats)
        self._standby = self._limb.groups = standby

    # ── look, and tell ──────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self, ended: set[int]) -> Observation:
        """Looks at everything, and returns one observation. The news is told."""
        now, mode = self.clock(), self._state.mode
        self._reaper.reap()
        self.stops.read(self.run.stop)
        self._others.tick()
        trains = mode is Mode.RUNNING and self._state.stepped
        self._standby.tick(now, ended, trains, self._limb.number)
        if mode is Mode.RUNNING:
            self._raise_up(now)
        self._tracker.flushed(self._flusher.tick(ended, trains), now)
        seen, news = self._others.merge(*self._limb.look(now, ended, mode, self._state.unexplained), now)
        self._narrator.stacks(seen.stacks)
        if all_left_with_0(seen):
            self._limb.let_go()
        over = mode is Mode.STOPPING and seen.gone
        if self._limb.attempt is not None:
            self._hear(self._limb.attempt, news, now, over)
        for text in self._limb.settle(now) if trains else ():
            self._narrator.warn(text)
        self._tracker.scan(now, final=over)
        return self._with_the_run(seen, news, over)

    def _with_the_run(self, seen: Observation, news: News, over: bool) -> Observation:
        """The observation of the attempt, completed with that of the run."""
        on_disk, in_memory = self._tracker.progress.checkpoint, self._flusher.newest() if over or news.quiet else -1
        return replace(
            seen,
            # Safe states go only with the machine. What is in memory is safe once no process writes there any more.
            checkpoint_step=max(on_disk, in_memory if over else -1),
            checkpoints=tuple(committed_steps(self.run.checkpoints)) if over else (),
            safe_step=max(on_disk, news.own_step, in_memory if news.quiet else -1),
            standby=self._standby.warm,
            standby_on_gpu=self._standby.on_gpu,
            gpus_free=self._limb.gpus().free(pids_are_ours()) if self._state.gpus_until is not None else None,
            stop=self.stops.kind,
            stop_now=self.stops.now,
            retry=retried(self.run.retry) if self._state.mode is Mode.BACKOFF else None,
        )

    def _hear(self, attempt: Attempt, news: News, now: float, over: bool) -> None:
        """Passes the news to all parts that need it."""
        self._tracker.see(news, attempt.number, self._others.world(self.spec.nproc))
        self._curve.see(attempt.number, news.trained)
        self._standby.measure(attempt.number, news.trained)
        self._narrator.saves(news.saves, now, final=over)
        self._flusher.hear(news.notes)
        self._own_saves.tick(attempt.number, news.saves)
        self._attempts.hear()
        if attempt.watch is not None:
            self._lanes.see(attempt.number, [b for b in attempt.watch.beats if b.rank in attempt.watch.ranks], now)
            self._narrator.faults(*self._injector.news())
            warming, high_step = self._standby.is_warming(), self._tracker.progress.high_step
            if self._injector.act(attempt.watch, self._flusher.process, high_step, warming, attempt.number):
                self._others.ask_faults()

    def _helpers(self) -> set[int]:
        """Processes of the run that belong to no attempt, beside those that wait to be one."""
        return self._flusher.pids() | self._own_saves.pids() | self._others.pids() | self.senders()

    # ── act ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _act(self, actions: Iterable[Action]) -> None:
        for action in actions:
            try:
                self._perform(action)
            except (OSError, MemoryError) as error:
                if isinstance(action, Launch) and self._limb.number != action.attempt:
                    # The attempt exists, and cannot start: nothing of the one before it is taken for its own.
                    self._narrator.new_attempt(action.attempt)
                    self._others.launch(action.attempt, action.nodes)
                    self._attempts.fail(action.attempt, error, self.clock())
                else:
                    self._blind(error)

    def _perform(self, action: Action) -> None:
        match action:
            case Launch(number, rollback, lost, nodes):
                self._launch(number, rollback, lost, nodes)
            case Send(name, reach):
                self._send(name, reach)
            case DumpStacks():
                more = self._others.dump(self.clock())
                self._narrator.dumped(self._limb.dump(), more)
            case Emit(event, _, fields):
                self._briefer.hear(event, fields)
                self._narrator.tell([action])
            case End():
                self._ended = action

    def _launch(self, number: int, rollback: Rollback | None, lost: Verdict | None, nodes: tuple[int, ...]) -> None:
        self._own_saves.over(number - 1)
        self._limb.leave(self.clock())
        self._narrator.new_attempt(number)
        if lost is not None and not self._shrink(lost):
            return
        if not self._attempts.first and self._flusher.attempt_died():
            self._narrator.removed_from_memory(self._flusher.segment, len(nodes) > 1)
        if rollback is not None and rollback.attempt == number - 1:
            self._flusher.abandon()
        self._narrator.program_changed(changes := self._attempts.changes())
        now, resume, checkpoint = self.clock(), self._attempts.resume, self._tracker.progress.checkpoint
        ours = max(checkpoint, self._flusher.newest()) if rollback is None else -1
        relaunch, briefing = self._briefer.brief(number, resume, rollback, bool(changes), checkpoint, ours, nodes)
        self._others.launch(number, nodes)
        self._attempts.launch(number, relaunch, rollback, briefing, self._flusher.took, now)
        self._raise_up(now)

    def _shrink(self, lost: Verdict) -> bool:
        """The run goes on without the lost GPU. False if no other is left: then the run ends."""
        spec = shrunk(self.spec, lost, self.environ, self._limb.gpus().devices)
        if spec is None:
            self._ended = End(ExitCode.POINTLESS, RunState.FAILED, f"no other GPU is left: {lost.reason}")
        if spec is None or spec is self.spec:
            return spec is not None
        save(self.run, spec)
        # What waits was made for all devices.
        self._standby.close()
        end_all(self.spec.mark, self._helpers(), self._reaper, 1.0)
        self.spec = spec
        self._attempts.use(spec)
        self._briefer.use(spec)
        self._wait()
        self._narrator.warn(told(spec))
        return True

    def _raise_up(self, now: float) -> None:
        attempt = self._limb.attempt
        if attempt is not None and attempt.raise_up(self._standby, now):
            ranks, about = self._others.world(self.spec.nproc), self._others.released()
            self._narrator.started(attempt, ranks, self._tracker.progress.checkpoint, **about)

    def _send(self, name: str, reach: Reach) -> None:
        self._others.send(name, reach)
        if sent := self._limb.send(name, reach, self.clock()):
            self._narrator.sent(name, reach, sent)

    # ── end ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _quit(self, anchor: Anchor) -> NoReturn:
        """Ends all processes of a run that is not ours any more, so that nothing is written in two places."""
        end_all(self.spec.mark, self.senders(), self._reaper, self.spec.policy.stuck_after)
        self._standby.close()
        self._flusher.abandon()
        why = anchor.lost()
        if not isinstance(why, Moved):
            snapshots.remove(self._flusher.segment)
            self._narrator.warn(str(why))
        self._others.end(why.exit_code, str(why), keep=isinstance(why, Moved))
        raise why

    def _clear_up(self, end: End) -> End:
        """No process of the run is alive, and what was in memory is on disk. The returned End tells exceptions."""
        stuck, time_limit = end.exit_code == ExitCode.STUCK, self.spec.policy.stuck_after
        self._standby.disperse()
        if not stuck:
            self._tracker.flushed(self._flusher.finish(), self.clock())
            self._standby.keep()
            if (step := self._flusher.leave(parts=end.exit_code == ExitCode.PREEMPTED)) is not None:
                self._narrator.only_in_memory(step, self._flusher.segment, step > self._flusher.newest())
            self._own_saves.close()
        self._others.end(end.exit_code, end.reason, keep=self._flusher.segment.exists())
        self._standby.close()
        # Processes that could not be killed have had their time already.
        spared = self._own_saves.pids() | self._standby.kept | self.senders()
        if not (left := end_all(self.spec.mark, spared, self._reaper, 1.0 if stuck else time_limit)):
            self._flusher.sweep()  # One that the fork server has forked too late was ended at its work.
        return machine.stuck(left, time_limit) if left and not stuck else end

    def _finish(self, end: End) -> End:
        """The end is told, and nothing is left half written."""
        if self.why and end.exit_code == ExitCode.STOPPED:
            end = replace(end, reason=f"{end.reason}: {self.why}")
        self._limb.close()
        self._curve.close()
        self._lanes.close(self.clock())
        self._narrator.ended(end, self._tracker.progress)
        self.log.sync()
        # Only after the end is told: until then a new supervisor may need this attempt's group.
        if self._limb.attempt is not None:
            self._limb.attempt.leave()
        shutil.rmtree(self.run.standby, ignore_errors=True)
        return end
