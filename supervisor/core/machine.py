"""The state machine: (policy, state, observation) to (state, actions). All changes of a run are drawn here.

                    verdict or stop                    group gone: decide            delay over
    RUNNING ────────────────────────────> STOPPING ──────────────────────> BACKOFF ─── and nodes ───> RUNNING
       ^                                     │  │                             │                   (attempt + 1)
    start                                    │  └── still alive 20 s after KILL ──> ENDED 106
                                             └── decided to end, or stop ─────────> ENDED <── stop, or too few nodes

Every verdict passes through STOPPING, a finished run's too. So "nothing of the old attempt is alive" is checked in one
place, and the decision is taken when the newest checkpoint is known.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from supervisor.core.actions import Action, DumpStacks, Emit, End, Launch, Reach, Send
from supervisor.core.diagnosis import gpu
from supervisor.core.diagnosis import presence as absence
from supervisor.core.diagnosis.diagnose import diagnose, unlaunched, where
from supervisor.core.diagnosis.left import leavers, waited_for
from supervisor.core.hangs.blame import hang_verdict
from supervisor.core.hangs.collectives import told
from supervisor.core.hangs.hang import Hang, Silence, look, quiet, unexplained
from supervisor.core.hangs.pauses import Told, tell
from supervisor.core.hangs.straggler import Arrivals, arrive
from supervisor.core.hangs.timings import Pace
from supervisor.core.model import FREEING, Cause, Decision, Do, Ground, History, Observation, Policy, StopKind, Verdict
from supervisor.core.nodes.gathering import gather
from supervisor.core.nodes.loss import in_doubt, judged
from supervisor.core.policy import decide, learn
from supervisor.core.stack import Stacks
from supervisor.core.words import RunState
from trainer.rundir.codes import ExitCode

GPU_WAIT = 60.0
"""Seconds that a run waits at most for a dead process to let go of a GPU."""
FRESH = 5.0
"""Seconds for which requested stacks still belong to the same silence."""
STARTED_AFTER = 600.0
"""Seconds after which an attempt without a known step counts as started. Its script steps in a way that we cannot
see."""
LINGER = 2.0
"""Seconds that the remaining processes of a finished script (such as an uploader) have to end by themselves."""
LINGER_TERM = 5.0
"""Seconds that these processes then have after a TERM."""


class Mode(enum.Enum):
    RUNNING = "running"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class State:
    """The memory of the machine. `attempt` is the number of the attempt that runs, or ran last."""

    mode: Mode = Mode.BACKOFF
    attempt: int = -1
    history: History = field(default_factory=History)
    hang: Hang = field(default_factory=Hang)
    verdict: Verdict | None = None
    stepped: bool = False
    launched_at: float = 0.0
    step: int = -1
    term_at: float | None = None
    kill_at: float | None = None
    killed_at: float | None = None
    next_at: float = 0.0
    """The time when BACKOFF is over."""
    shrinks: bool = False
    """BACKOFF ends with a launch without the GPU that is lost."""
    due_since: float | None = None
    """When the next attempt could have begun, but for nodes."""
    gpus_until: float | None = None
    """BACKOFF is over as soon as no dead process holds a GPU, if that is known, and at this time at the latest."""
    arrivals: Arrivals = field(default_factory=Arrivals)
    pauses: Mapping[int, Told] = field(default_factory=dict)
    unexplained: Mapping[int, float] = field(default_factory=dict)
    """The ranks whose stacks must be sampled now, and the seconds for which they have been silent."""
    presence: absence.Presence = field(default_factory=absence.Presence)
    suspects: bool = False
    """A rank is overdue, or may wait for a rank that has left. Stacks have been requested as evidence."""
    asked_after: float = 0.0
    """The seconds of silence when the ranks were last asked whether they wait for a rank that has left."""


def begin(last_attempt: int, history: History, pace: Pace = Pace(), step: int = -1) -> State:  # noqa: B008 (frozen)
    """The state of a supervisor that takes up a run. `last_attempt` was its last attempt (-1 for none), `step` its
    highest step."""
    return State(attempt=last_attempt, history=history, hang=Hang(pace), step=step)


def adopt(
    attempt: int, history: History, pace: Pace, launched_at: float, now: float, told: Verdict | None
) -> tuple[State, list[Action]]:
    """The state of a supervisor that adopts an attempt of a dead supervisor, and the actions to do now. `told` is the
    verdict that the dead supervisor has told. It stays valid."""
    state = State(Mode.RUNNING, attempt, history, Hang(pace, again=attempt > 0), launched_at=launched_at)
    if told is None:
        return state, []
    # After a reboot the old clock is ahead of ours.
    told = replace(told, at=min(told.at, now), failed_at=min(told.failed_at, now))
    return _act_on(replace(state, stepped=told.step >= 0, step=told.step), now, told)


def step(policy: Policy, state: State, seen: Observation, jitter: float = 0.0) -> tuple[State, list[Action]]:
    """The next state, and the actions to do now."""
    match state.mode:
        case Mode.RUNNING:
            return _running(policy, state, seen)
        case Mode.STOPPING:
            return _stopping(policy, state, seen, jitter)
        case Mode.BACKOFF:
            return _backoff(policy, state, seen)
        case Mode.ENDED:
            return state, []


def _backoff(policy: Policy, state: State, seen: Observation) -> tuple[State, list[Action]]:
    if seen.stop is not None:
        verdict = _asked(state, seen, seen.stop)
        decision, _ = decide(policy, verdict, state.history, state.history, Ground(), seen.now, 0.0)
        return _end(state, decision)
    attempt = state.attempt + 1
    if not _is_due(state, seen) and seen.retry != attempt:
        return state, []
    since = seen.now if state.due_since is None else state.due_since
    gathered = gather(seen.nodes, state.verdict is None, since, seen.now)
    if gathered.end is not None:
        return replace(state, mode=Mode.ENDED), [gathered.end]
    if gathered.nodes is None:
        return replace(state, due_since=since), list(gathered.told) if state.due_since is None else []
    started = State(Mode.RUNNING, attempt, state.history, state.hang.new_attempt(attempt > 0), launched_at=seen.now)
    lost = state.verdict if state.shrinks else None
    return started, [Launch(attempt, state.history.rollback, lost, gathered.nodes)]


def _is_due(state: State, seen: Observation) -> bool:
    """Whether the next attempt may begin: after its wait, or as soon as no dead process holds a GPU."""
    if state.gpus_until is None or seen.gpus_free is None:
        return seen.now >= state.next_at
    return seen.gpus_free or seen.now >= state.gpus_until


def _running(policy: Policy, state: State, seen: Observation) -> tuple[State, list[Action]]:
    state = _note_progress(state, seen)
    hang, silence = look(state.hang, policy, seen)
    state = replace(state, hang=hang)
    verdict = diagnose(seen, state.stepped, state.step)
    if seen.launch_error:
        verdict = unlaunched(seen)
    verdict = judged(seen, verdict, where(state.step, state.stepped), state.step)
    presence, absent = absence.look(state.presence, policy, seen)
    state = replace(state, presence=presence)
    if verdict is None and seen.stop is not None:
        return _ask(policy, state, seen, seen.stop)
    verdict = verdict or (absent if not in_doubt(seen) else None)
    if verdict is None and in_doubt(seen):
        return replace(state, suspects=True), []
    if verdict is None and silence is not None:
        return _silent(state, seen, silence)
    silent = quiet(hang, policy, seen, {leaver.rank for leaver in leavers(seen)})
    if verdict is None and silent and silent >= 2 * state.asked_after:
        return _deserted(state, seen, silent)
    arrivals, changes = arrive(state.arrivals, seen.ranks)
    asked_after = state.asked_after if silent else 0.0
    state = replace(state, suspects=False, arrivals=arrivals, asked_after=asked_after)
    if verdict is None:
        pauses, told = tell(state.pauses, hang, seen)
        state = replace(state, pauses=pauses, unexplained=unexplained(hang, policy, seen))
        return state, [*told, *(change.event for change in changes)]
    return _conclude(state, seen, verdict)


def _deserted(state: State, seen: Observation, silent: float) -> tuple[State, list[Action]]:
    """Asks ranks that are silent since another rank has left whether they wait for it. The first question comes early.
    Later ones come less and less often, because the ranks usually have other work."""
    if (stacks := _fresh(seen)) is None:
        return replace(state, suspects=True), [DumpStacks()]
    state = replace(state, asked_after=silent, suspects=False)
    verdict = waited_for(seen, state.stepped, stacks, silent)
    return _conclude(state, seen, verdict) if verdict else (state, [])


def _fresh(seen: Observation) -> Stacks | None:
    return seen.stacks if seen.stacks is not None and seen.now < seen.stacks.at + FRESH else None


def _silent(state: State, seen: Observation, silence: Silence) -> tuple[State, list[Action]]:
    """An overdue group is first asked for its stacks. If a beat comes meanwhile, there is no verdict."""
    stacks = _fresh(seen)
    if stacks is None and not silence.stopped:
        return replace(state, suspects=True), [DumpStacks()]
    state = replace(state, hang=state.hang.judged(silence), suspects=False)
    verdict = None
    if stacks is not None and not silence.stopped:
        verdict = waited_for(seen, state.stepped, stacks, silence.silent_for)
    verdict = verdict or hang_verdict(seen, silence, None if silence.stopped else stacks)
    verdict = told(gpu.judged(verdict, seen.evidence), seen.evidence.odd)
    state, actions = _conclude(state, seen, verdict)
    # Stopped ranks are known without stacks. The others' stacks are kept all the same.
    return state, [actions[0], DumpStacks(), *actions[1:]] if silence.stopped else actions


def _note_progress(state: State, seen: Observation) -> State:
    return replace(
        state,
        stepped=state.stepped or bool(seen.steps) or seen.saves > 0 or seen.now > state.launched_at + STARTED_AFTER,
        step=max([state.step, *seen.steps.values()]),
    )


def _conclude(state: State, seen: Observation, verdict: Verdict) -> tuple[State, list[Action]]:
    """Tells the verdict and acts on it."""
    state, actions = _act_on(state, seen.now, verdict)
    return state, [_verdict_event(verdict, seen.now), *actions]


def _act_on(state: State, now: float, verdict: Verdict) -> tuple[State, list[Action]]:
    """STOPPING after a verdict. The rest of a failed attempt is useless, so it is killed at once."""
    state = replace(state, mode=Mode.STOPPING, verdict=verdict, unexplained={})
    if verdict.cause is Cause.FINISHED:
        return replace(state, term_at=now + LINGER, kill_at=now + LINGER + LINGER_TERM), []
    return replace(state, killed_at=now), [Send("KILL", Reach.ALL)]


def _ask(policy: Policy, state: State, seen: Observation, stop: StopKind) -> tuple[State, list[Action]]:
    """STOPPING on request: one TERM to each rank, and the whole grace for a last checkpoint."""
    verdict = _asked(state, seen, stop)
    event = Emit("stop_requested", fields={"by": stop.value, "step": state.step, "now": seen.stop_now})
    state = replace(state, mode=Mode.STOPPING, verdict=verdict, unexplained={})
    if seen.stop_now:
        return replace(state, killed_at=seen.now), [event, Send("KILL", Reach.ALL)]
    return replace(state, kill_at=seen.now + policy.grace), [event, Send("TERM", Reach.RANKS)]


def _stopping(policy: Policy, state: State, seen: Observation, jitter: float) -> tuple[State, list[Action]]:
    state = _note_progress(state, seen)
    unfenced = seen.nodes.unfenced() if seen.nodes is not None else ()
    if not seen.alive and not unfenced:
        return _gone(policy, state, seen, jitter)
    if state.killed_at is not None:
        # A silent node is lost when its lease is over.
        limit = policy.stuck_after * (FREEING if seen.frees else 1.0)
        if seen.now >= state.killed_at + limit and not any(view.silent for view in unfenced):
            return _stuck(state, seen)
        return state, [Send("KILL", Reach.ALL)]
    ranks_gone = not seen.ranks and state.verdict is not None and state.verdict.cause is not Cause.FINISHED
    if ranks_gone and any(e.rank is not None for e in seen.exits):
        # The ranks have done their part. The rest gets the time of a finished run, not the whole grace.
        state = replace(state, kill_at=min(state.kill_at or seen.now, seen.now + LINGER))
    if seen.stop_now or (state.kill_at is not None and seen.now >= state.kill_at):
        return replace(state, killed_at=seen.now, term_at=None), [Send("KILL", Reach.ALL)]
    if state.term_at is not None and seen.now >= state.term_at:
        return replace(state, term_at=None), [Send("TERM", Reach.ALL)]
    return state, []


def _gone(policy: Policy, state: State, seen: Observation, jitter: float) -> tuple[State, list[Action]]:
    verdict = state.verdict
    assert verdict is not None
    kept = max(seen.checkpoint_step, seen.own_step)
    after = learn(state.history, verdict, state.stepped, kept, seen.own_unplaced)
    told = {"stop_s": round(seen.now - verdict.at, 4), "step": state.step, "barren": after.barren}
    gone = Emit("group_gone", fields=told, once="group_gone")
    if seen.stop is not None and verdict.cause is not Cause.FINISHED:
        # Nobody wants the run to go on, whatever ended the attempt. And the run has gone further since the request.
        verdict = _asked(state, seen, seen.stop)
    ground = Ground(state.attempt, seen.checkpoint_step, seen.checkpoints)
    decision, after = decide(policy, verdict, state.history, after, ground, seen.now, jitter)
    state = replace(state, history=after)
    if decision.delay is None:
        state, actions = _end(state, decision)
        return state, [gone, *actions]
    fields = {
        "delay_s": round(decision.delay, 3),
        "do": decision.do.value,
        "counted": decision.counted,
        "checkpoint_step": seen.checkpoint_step,
        "best_step": after.best_step,
        "barren": after.barren,
        "startup_failures": after.startup_failures,
        "signature": list(verdict.signature),
        "rollback": asdict(after.rollback) if after.rollback else None,
        "rollbacks": after.rollbacks,
        "bad_step": after.bad_step,
        "reason": decision.reason,
    }
    until = seen.now + GPU_WAIT if verdict.cause is Cause.GPU_BUSY else None
    waiting = replace(state, mode=Mode.BACKOFF, next_at=seen.now + decision.delay, gpus_until=until)
    waiting = replace(waiting, shrinks=decision.do is Do.SHRINK)
    return waiting, [gone, Emit("relaunch_scheduled", "warning", fields)]


def _asked(state: State, seen: Observation, stop: StopKind) -> Verdict:
    """The verdict on an attempt, or on the wait for the next one, after a request to stop."""
    at = where(state.step, state.stepped)
    if stop is StopKind.USER:
        cause, reason = Cause.STOPPED_BY_USER, f"stopped by the user {at}"
    else:
        cause, reason = Cause.PREEMPTED, f"preempted {at}; safe to launch again"
    return Verdict(cause, reason, seen.now, step=state.step, failed_at=seen.now)


def _end(state: State, decision: Decision) -> tuple[State, list[Action]]:
    return replace(state, mode=Mode.ENDED), [End(decision.exit_code, decision.state, decision.reason)]


def _stuck(state: State, seen: Observation) -> tuple[State, list[Action]]:
    nodes = [view.name for view in seen.nodes.unfenced()] if seen.nodes is not None else []
    end = stuck(seen.alive, seen.now - (state.killed_at or seen.now), nodes)
    return replace(state, mode=Mode.ENDED), [end]


def stuck(pids: tuple[int, ...], seconds: float, nodes: Sequence[str] = ()) -> End:
    """The end of a run whose `pids` were alive `seconds` after their SIGKILL, or that has such processes on `nodes`. No
    next attempt may start beside them."""
    who = f"pid {', '.join(map(str, pids))} {'is' if len(pids) == 1 else 'are'}" if pids else "a process is"
    where = f" on {' and '.join(nodes)}" if nodes else ""
    why = "perhaps waiting for a disk or a driver"
    return End(ExitCode.STUCK, RunState.STUCK, f"{who} alive{where} {seconds:.0f} s after SIGKILL: {why}")


def _verdict_event(verdict: Verdict, now: float) -> Emit:
    finished = verdict.cause is Cause.FINISHED
    return Emit(
        "verdict",
        "info" if finished else "error",
        {
            "cause": verdict.cause.value,
            "rank": verdict.rank,
            "signal": verdict.signal,
            "exit_code": verdict.exit_code,
            "step": verdict.step,
            "frame": verdict.frame,
            "collateral": list(verdict.collateral),
            "bad_step": verdict.bad_step,
            "data_step": verdict.data_step,
            "detect_s": round(now - verdict.failed_at, 4),
            "failed_mono": verdict.failed_at,
            "reason": verdict.reason,
        }
        | ({} if verdict.node is None else {"node": verdict.node}),
    )
