"""The story of a run, from its events alone: its state, its attempts, and all that the next supervisor must know. Pure.
Any garbage is accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from supervisor.core.model import Cause, History, StopKind
from supervisor.core.telling.attempt_story import AttemptStory
from supervisor.core.telling.fields import Event, hosts, known, number, optional, whole
from supervisor.core.telling.restarts import history_after
from supervisor.core.telling.time_line import TimeLine, wall
from supervisor.core.words import EventName, RunState


@dataclass(slots=True)
class Story:
    """The run so far."""

    state: str = RunState.STARTING
    exit_code: int | None = None
    reason: str = ""
    attempts: list[AttemptStory] = field(default_factory=list)
    started: float | None = None
    started_wall: str = ""
    launched: float = 0.0
    """The time when its newest supervisor took it up."""
    ended: float | None = None
    ended_wall: str = ""
    last: float = 0.0
    """The time of the last event."""
    last_wall: str = ""
    boot: object = None
    """The boot of the machine whose CLOCK_MONOTONIC the newest events have, if any event has told."""
    checkpoint_step: int = -1
    keeps: bool = False
    """Whether a Checkpointer of ours keeps its state."""
    saved: bool = False
    """Whether the script has saved by itself."""
    high_step: int = -1
    since: int = 0
    """The first attempt after the last launch with --resume never. The saves of earlier attempts are not used."""
    history: History = field(default_factory=History)
    barren: int = 0
    """Attempts in a row without a new checkpoint, with the last one. `history` does not have the last one if no restart
    followed it."""
    restarts: int = 0
    next_at: float | None = None
    """The time of the next attempt, while the run waits for it."""
    unmanned: list[tuple[float, float]] = field(default_factory=list)
    """The times between the end or the last word of a supervisor, and the next supervisor. An attempt may have lived
    through such a time."""
    launcher_pid: int | None = None
    standby: Event | None = None
    """The newest event about the standby: that it waits, or why there is none. None while nothing is known."""
    abandoned: float | None = None
    """The time of the last event of an attempt whose supervisor died. None once the attempt is adopted or over."""
    offset: float = 0.0
    """Seconds to add to the CLOCK_MONOTONIC of that boot, to continue the run's time line."""

    @property
    def over(self) -> bool:
        """Whether the run's last supervisor has ended it, in any state."""
        return self.ended is not None

    @property
    def unplaced(self) -> bool:
        """Whether nothing tells which steps of the run the last attempt has done."""
        return self.attempt is not None and self.attempt.unplaced

    @property
    def attempt(self) -> AttemptStory | None:
        return self.attempts[-1] if self.attempts else None

    def failures(self) -> list[AttemptStory]:
        """Attempts that neither finished nor were stopped by request."""
        fine = (Cause.FINISHED, Cause.STOPPED_BY_USER, Cause.PREEMPTED)
        return [a for a in self.attempts if a.cause is not None and a.cause not in fine]


def tell(events: Iterable[Event]) -> Story:
    """The story that `events` tell, in their order. Unknown events and fields are ignored."""
    telling = Telling()
    for event in events:
        telling.hear(event)
    return telling.story


class Telling:
    """A story that grows with each event."""

    def __init__(self) -> None:
        self.story = Story()
        self._line = TimeLine()

    def hear(self, event: Event) -> None:
        """The story has the event, if that has a time."""
        story, moved = self.story, self._line.place(event)
        if moved is None:
            return
        story.offset, story.boot = self._line.offset, self._line.boot
        teller = _TELLERS.get(str(moved.get("msg")))
        if teller is not None:
            teller(story, moved, moved["mono"])
        story.last, story.last_wall = moved["mono"], str(event.get("ts", ""))


def _run_started(story: Story, event: Event, mono: float) -> None:
    if story.started is None:
        story.started = mono
        story.started_wall = str(event.get("ts", ""))
    else:
        story.unmanned.append((story.ended if story.ended is not None else story.last, mono))
    if story.attempt is not None and story.attempt.gone is None and story.abandoned is None:
        story.abandoned = story.last
    story.state, story.exit_code, story.ended, story.standby = RunState.STARTING, None, None, None
    story.reason, story.next_at = "", None
    story.launched = mono
    if event.get("resume") == "never":
        # Everything that was saved is moved aside, with the state that a rollback avoids: nothing of it is progress.
        story.history, story.barren = History(), 0
        story.since = story.attempt.number + 1 if story.attempt else 0
    elif event.get("fresh_budget"):
        # The script's own saves may have been removed for a new beginning.
        story.history = History(best_step=story.checkpoint_step)
        story.barren = 0


def _bury(story: Story) -> None:
    """The last attempt is over if its supervisor died and nobody adopted it."""
    attempt, since = story.attempt, story.abandoned
    story.abandoned = None
    if attempt is not None and since is not None and attempt.gone is None:
        # Its supervisor saw nothing more. Its last event is the last that we know.
        attempt.cause = attempt.cause or "lost"
        attempt.reason = attempt.reason or "the supervisor died"
        attempt.failed = attempt.failed or since
        attempt.verdict = attempt.verdict or since
        attempt.gone = since


def _takeover(story: Story, event: Event, mono: float) -> None:
    _bury(story)
    if story.attempt:
        story.attempt.to_step = max(story.attempt.to_step, whole(event, "step"))
        story.high_step = max(story.high_step, story.attempt.to_step)


def _adopted(story: Story, event: Event, mono: float) -> None:
    story.abandoned = None
    if (attempt := story.attempt) is None:
        return
    attempt.to_step = max(attempt.to_step, whole(event, "step"))
    if event.get("verdict"):
        story.state = RunState.RECOVERING
        return
    # The requests to its dead supervisor are void.
    attempt.cause = attempt.failed = attempt.verdict = None
    starting = RunState.RECOVERING if attempt.number > 0 else RunState.STARTING
    story.state = RunState.RUNNING if attempt.first_step is not None else starting


def _attempt_started(story: Story, event: Event, mono: float) -> None:
    _bury(story)
    which = whole(event, "attempt", len(story.attempts))
    started, told = number(event, "wanted_mono", mono), wall(event)
    began = told - (mono - started) if told is not None else None
    if anew := story.attempt is None or story.attempt.number < story.since:
        story.checkpoint_step = story.high_step = -1
    story.attempts.append(AttemptStory(which, started, began, story.offset, hosts(event), anew))
    story.launcher_pid, story.standby, story.next_at = optional(event, "launcher_pid"), None, None
    story.state = RunState.RECOVERING if which > 0 else RunState.STARTING


def _group_ready(story: Story, event: Event, mono: float) -> None:
    if story.attempt:
        story.attempt.ready = mono


def _started_over(story: Story, event: Event, mono: float) -> None:
    if story.attempt:
        story.attempt.over = event


def _resumed(story: Story, event: Event, mono: float) -> None:
    story.keeps = story.keeps or event.get("source") not in ("script", None)
    if story.attempt:
        # The load of the script's own save is told at its first step. The note has the time of the load.
        story.attempt.resumed = number(event, "noted_mono", mono)
        story.attempt.from_step = known(whole(event, "step", 0))


def _first_step(story: Story, event: Event, mono: float) -> None:
    if story.attempt:
        story.attempt.first_step = number(event, "at_mono", mono)
        story.attempt.to_step = whole(event, "step")
        story.attempt.from_step = known(whole(event, "from_step", story.attempt.from_step or 0))
    story.state = RunState.RUNNING


def _caught_up(story: Story, event: Event, mono: float) -> None:
    if story.attempt:
        story.attempt.caught_up = mono


def _saved(story: Story, event: Event, mono: float) -> None:
    step = whole(event, "step") if event.get("msg") == EventName.CHECKPOINT_COMMITTED else -1
    story.checkpoint_step = max(story.checkpoint_step, step)
    if story.attempt:
        story.attempt.to_step = max(story.attempt.to_step, step)
        story.attempt.stall_s += number(event, "seconds", 0.0) + number(event, "stall_s", 0.0)


def _script_saved(story: Story, event: Event, mono: float) -> None:
    story.saved = True


def _quarantined(story: Story, event: Event, mono: float) -> None:
    story.checkpoint_step = min(story.checkpoint_step, whole(event, "newest_good", story.checkpoint_step))


def _fault(story: Story, event: Event, mono: float) -> None:
    if story.attempt:
        story.attempt.faults.append(event)


def _standby(story: Story, event: Event, mono: float) -> None:
    story.standby = event


def _stop_requested(story: Story, event: Event, mono: float) -> None:
    story.state = RunState.STOPPING
    if story.attempt:
        cause = Cause.STOPPED_BY_USER if event.get("by") == StopKind.USER else Cause.PREEMPTED
        story.attempt.cause, story.attempt.verdict, story.attempt.failed = cause, mono, mono
        story.attempt.to_step = max(story.attempt.to_step, whole(event, "step"))


def _verdict(story: Story, event: Event, mono: float) -> None:
    if attempt := story.attempt:
        attempt.verdict = mono
        attempt.cause = str(event.get("cause"))
        attempt.rank = optional(event, "rank")
        attempt.signal = optional(event, "signal")
        attempt.exit_code = optional(event, "exit_code")
        attempt.reason = str(event.get("reason", ""))
        attempt.to_step = max(attempt.to_step, whole(event, "step"))
        attempt.failed = attempt.struck(number(event, "failed_mono", mono))
        attempt.detect_s = round(mono - attempt.failed, 6)
        story.high_step = max(story.high_step, attempt.to_step)
    story.state = RunState.RUNNING if event.get("cause") == Cause.FINISHED else RunState.RECOVERING


def _stacks(story: Story, event: Event, mono: float) -> None:
    groups = event.get("groups")
    if story.attempt and isinstance(groups, list):
        story.attempt.groups = tuple(str(group) for group in groups)


def _straggler(story: Story, event: Event, mono: float) -> None:
    if story.attempt and isinstance(rank := event.get("rank"), int):
        story.attempt.stragglers.pop(rank, None)
        if event.get("slow"):
            story.attempt.stragglers[rank] = str(event.get("text", ""))


def _pause(story: Story, event: Event, mono: float) -> None:
    if story.attempt and isinstance(rank := event.get("rank"), int):
        story.attempt.pauses = {**story.attempt.pauses, rank: event}


def _group_gone(story: Story, event: Event, mono: float) -> None:
    if story.attempt:
        story.attempt.gone = mono
        story.attempt.to_step = max(story.attempt.to_step, whole(event, "step"))
        story.high_step = max(story.high_step, story.attempt.to_step)
    story.barren = whole(event, "barren", story.barren)


def _relaunch(story: Story, event: Event, mono: float) -> None:
    story.history = history_after(event, story.history, mono)
    story.restarts += 1
    story.barren = story.history.barren
    story.next_at = mono + number(event, "delay_s", 0.0)
    story.state = RunState.BACKOFF if number(event, "delay_s", 0.0) > 0 else RunState.RECOVERING


def _run_ended(story: Story, event: Event, mono: float) -> None:
    _bury(story)
    story.ended, story.ended_wall = mono, str(event.get("ts", ""))
    story.state = str(event.get("state"))
    story.exit_code = optional(event, "exit_code")
    story.reason = str(event.get("reason", ""))
    story.high_step = max(story.high_step, whole(event, "step"))
    if story.attempt:
        story.attempt.last = True
        story.attempt.gone = mono if story.attempt.gone is None else story.attempt.gone


_TELLERS: Mapping[str, Callable[[Story, Event, float], None]] = {
    EventName.RUN_STARTED: _run_started,
    EventName.TAKEOVER: _takeover,
    EventName.ADOPTED: _adopted,
    EventName.ATTEMPT_STARTED: _attempt_started,
    EventName.GROUP_READY: _group_ready,
    EventName.RESUMED: _resumed,
    EventName.STARTED_OVER: _started_over,
    EventName.FIRST_STEP: _first_step,
    EventName.CAUGHT_UP: _caught_up,
    EventName.CHECKPOINT_COMMITTED: _saved,
    EventName.CHECKPOINT_FAILED: _saved,
    EventName.CHECKPOINT_QUARANTINED: _quarantined,
    EventName.SCRIPT_SAVED: _script_saved,
    EventName.FAULT_INJECTED: _fault,
    EventName.STANDBY_READY: _standby,
    EventName.STANDBY_LOST: _standby,
    EventName.STANDBY_COST: lambda story, event, mono: story.attempts[-1].paid(event) if story.attempts else None,
    EventName.STOP_REQUESTED: _stop_requested,
    EventName.VERDICT: _verdict,
    EventName.STACKS_DUMPED: _stacks,
    EventName.STRAGGLER: _straggler,
    EventName.PAUSE: _pause,
    EventName.GROUP_GONE: _group_gone,
    EventName.RELAUNCH_SCHEDULED: _relaunch,
    EventName.RUN_ENDED: _run_ended,
}
