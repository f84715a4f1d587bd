"""The loop: look, let the core decide, do what it says, sleep until something ends, a timer is due or a signal comes."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from supervisor import proctree, stacks
from supervisor.chronicle import Chronicle
from supervisor.core import machine
from supervisor.core.model import Action, DumpStacks, Emit, End, History, Launch, Observation, Reach, Send
from supervisor.events import EventLog
from supervisor.faults import Saboteur
from supervisor.launch import start
from supervisor.spec import Spec
from supervisor.stops import Stops, signals
from supervisor.watch import Watch
from trainer.rundir.beats import BeatReader, Phase
from trainer.rundir.layout import RunDir

_TICK = 0.1
_TICK_EAGER = 0.01
"""While an attempt comes up or goes down, where every millisecond is one of recovery."""


def last_beat(run: RunDir, attempt: int) -> int:
    """The highest step that the ranks of `attempt` have left in their beats, or -1."""
    try:
        reader = BeatReader(run.attempt(attempt).beats)
    except (OSError, ValueError):
        return -1
    try:
        return max((beat.step for beat in reader.read() if beat.phase >= Phase.TRAIN), default=-1)
    finally:
        reader.close()


@dataclass
class Driver:
    """One supervisor's life with one run. The caller holds the run's lock."""

    run: RunDir
    spec: Spec
    log: EventLog
    environ: Mapping[str, str]
    last_attempt: int = -1
    history: History = field(default_factory=History)
    high_step: int = -1
    unfinished: bool = False
    """Whether an earlier supervisor of this run died before it could end it."""
    told_faults: set[str] = field(default_factory=set)
    """Firings of faults that the events tell already."""
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = lambda: random.uniform(-1.0, 1.0)

    def __post_init__(self) -> None:
        self.stops = Stops()
        self._watch: Watch | None = None
        self._reaped: dict[int, int] = {}
        self._launch_error = ""
        self._ended: End | None = None
        self._chronicle = Chronicle(self.run, self.log, self.high_step)
        self._dumped = False
        self._saboteur = Saboteur(self.run.faults, self.run.checkpoints, self.told_faults)

    def drive(self) -> End:
        """The run is over and nothing of it is alive, unless the End says that something could not be killed."""
        proctree.become_subreaper()
        with signals(self.stops) as wakeup:
            if left := self._clear_leftovers():
                return self._finish(End(106, "stuck", f"{left} processes of a dead supervisor cannot be killed"))
            state = machine.begin(self.last_attempt, self.history)
            ended: set[int] = set()
            while self._ended is None:
                seen = self._look(state, ended)
                state, actions = machine.step(self.spec.policy, state, seen, self.jitter())
                for action in actions:
                    self._perform(action, state)
                if self._ended is None:
                    self.log.sync()
                    ended = self._sleep(state, wakeup)
        return self._finish(self._ended)

    def _clear_leftovers(self) -> int:
        """Processes that an earlier supervisor of this run left are killed: two gangs must never run at once."""
        leftovers = proctree.marked(self.spec.mark)
        if leftovers or self.unfinished:
            step = last_beat(self.run, self.last_attempt)
            self._chronicle.high_step = max(self.high_step, step)
            self.log.emit("takeover", "warning", killed=len(leftovers), step=step)
        until = self.clock() + self.spec.policy.stuck_after
        while leftovers and self.clock() < until:
            proctree.send_all(leftovers, signal.SIGKILL)
            proctree.reap(self._reaped)
            time.sleep(_TICK_EAGER)
            leftovers = proctree.marked(self.spec.mark)
        return len(leftovers)

    # ── look ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self, state: machine.State, ended: set[int]) -> Observation:
        now = self.clock()
        proctree.reap(self._reaped)
        self.stops.read(self.run.stop)
        stopping = state.mode is machine.Mode.STOPPING
        alive = len(proctree.members(self.spec.mark)) if stopping else 1
        watch = self._watch
        if watch is not None:
            watch.look(now, ended)
            self._chronicle.tell(watch, self.spec.nproc)
            self._meddle(watch)
        self._chronicle.scan(now, final=stopping and alive == 0)
        if watch is None:
            return Observation(
                now=now,
                alive=alive,
                checkpoint_step=self._chronicle.checkpoint,
                launch_error=self._launch_error,
                stop=self.stops.kind,
                stop_now=self.stops.now,
            )
        return Observation(
            now=now,
            ranks=watch.views(),
            steps=watch.steps(),
            exits=tuple(watch.exits),
            raised=tuple(watch.raised),
            alive=alive,
            checkpoint_step=self._chronicle.checkpoint,
            saves=watch.saves(),
            log_grew_at=watch.log_grew_at,
            stop=self.stops.kind,
            stop_now=self.stops.now,
        )

    def _meddle(self, watch: Watch) -> None:
        armed, fired = self._saboteur.news()
        for fault in armed:
            self.log.emit("fault_armed", number=fault.number, spec=fault.text)
        if armed:
            watch.ask_faults()
        for body in fired:
            fields = {key: body[key] for key in ("spec", "fault", "rank", "step") if key in body}
            self.log.emit("fault_injected", "warning", injected=True, fired_mono=body.get("mono"), **fields)
        self._saboteur.fire(watch.beats, watch.ranks, watch.launcher, self.log.attempt)

    # ── act ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _perform(self, action: Action, state: machine.State) -> None:
        match action:
            case Launch(attempt):
                self._launch(attempt)
            case Send(name, reach):
                self._send(name, reach)
            case DumpStacks():
                self._dump()
            case Emit(event, level, fields):
                self.log.emit(event, level, **fields)
            case End():
                self._ended = action

    def _launch(self, attempt: int) -> None:
        self._leave_attempt()
        self._launch_error, self._dumped = "", False
        self._chronicle.new_attempt(attempt)
        # `never` is about what was there at the launch; what this run has saved since is its own.
        first = attempt == self.last_attempt + 1
        resume = self.spec.resume if first else "auto"
        try:
            pid = start(
                self.spec, self.run, attempt, resume, not first or self._chronicle.checkpoint >= 0, self.environ
            )
            self._watch = Watch(self.run.attempt(attempt), pid, self.spec.nproc, self._reaped)
        except OSError as error:
            self._launch_error = str(error)
            return
        self.log.emit(
            "attempt_started", launcher_pid=pid, nproc=self.spec.nproc, checkpoint_step=self._chronicle.checkpoint
        )

    def _leave_attempt(self) -> None:
        """Nothing of the attempt is open, and what its processes were writing when they were killed is removed."""
        if self._watch is None:
            return
        self._watch.close()
        for folder in (self.run.path, self._watch.folder.path):
            for unfinished in folder.glob(".*.tmp-*"):
                unfinished.unlink(missing_ok=True)
        self._watch = None

    def _send(self, name: str, reach: Reach) -> None:
        number = signal.SIGKILL if name == "KILL" else signal.SIGTERM
        if reach is Reach.RANKS and self._watch is not None and (self._watch.ranks or self._watch.launcher):
            # A rank still on its way up cannot be asked; its launcher can, and dies of it at once.
            launcher = [self._watch.launcher] if self._watch.launcher and not self._watch.ranks else []
            targets = [*self._watch.ranks.values(), *launcher]
            sent = sum(process.send(number) for process in targets)
            for process in targets:
                # A stopped process takes its TERM only once it goes on.
                process.send(signal.SIGCONT)
        else:
            sent = proctree.send_all(proctree.members(self.spec.mark), number)
        if sent:
            self._chronicle.once(f"signal {name}", "signal_sent", signal=f"SIG{name}", to=reach.value, processes=sent)

    def _dump(self) -> None:
        if self._watch is None or self._dumped:
            return
        self._dumped = True
        files = stacks.dump(self._watch.ranks, self._watch.folder.stacks)
        self.log.emit("stacks_dumped", ranks=sorted(files), missing=sorted(set(self._watch.ranks) - set(files)))

    # ── sleep ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _sleep(self, state: machine.State, wakeup: int) -> set[int]:
        """Returns the pidfds that are readable: which processes have ended."""
        eager = state.mode is not machine.Mode.RUNNING or not state.stepped
        timeout = _TICK_EAGER if eager else _TICK
        if (deadline := machine.deadline(state)) is not None and state.mode is machine.Mode.BACKOFF:
            timeout = min(_TICK, max(0.0, deadline - self.clock()))
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        fds = self._watch.fds() if self._watch else []
        for fd in fds:
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(timeout * 1000)}
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 4096)
        return ready & set(fds)

    def _finish(self, end: End) -> End:
        self._leave_attempt()
        level = "info" if end.exit_code == 0 else "error"
        self.log.emit(
            "run_ended",
            level,
            exit_code=end.exit_code,
            state=end.state,
            step=self._chronicle.high_step,
            checkpoint_step=self._chronicle.checkpoint,
            reason=end.reason,
        )
        self.log.sync()
        return end
