"""What earlier supervisors of a run have left: what its events tell, and a group that may be adopted.

    the last attempt is settled (its successor decided, or written off)  ->  nothing to adopt
    its group is not what is asked for now, or cannot be told from others ->  nothing to adopt
    the verdict on it was told                                           ->  adopted, in STOPPING: the verdict stands
    its launcher lives, or has reported how it ended                     ->  adopted, in RUNNING: it is judged as ever
    its launcher was killed                                              ->  nothing to adopt

What is not adopted is ended and verified gone before anything else is launched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from supervisor.core.model import Verdict
from supervisor.core.telling.story import Story, tell
from supervisor.core.words import EventName, RunState
from supervisor.reading.events_file import read_events
from trainer.rundir.layout import RunDir

_SETTLED = (EventName.RELAUNCH_SCHEDULED, EventName.TAKEOVER, EventName.RUN_ENDED)
"""Events after which an attempt is nobody's any more."""


@dataclass(frozen=True, slots=True)
class Previous:
    """A run as its events tell it, before a new supervisor has said a word."""

    story: Story = field(default_factory=Story)
    last_attempt: int = -1
    """The highest number that was ever given, told or not; it is never given again."""
    events: tuple[dict[str, Any], ...] = ()
    """Of the last attempt."""
    checkpoints: frozenset[int] = frozenset()
    """Those that are told of."""
    faults_fired: frozenset[str] = frozenset()
    faults_armed: frozenset[int] = frozenset()

    @property
    def told_checkpoints(self) -> frozenset[int] | None:
        """The checkpoints that an unfinished run has told of; None for one that begins, whose folder may hold others."""
        return self.checkpoints if self.unfinished else None

    @property
    def unfinished(self) -> bool:
        """Whether a supervisor died before it could end the run."""
        return self.story.started is not None and not self.story.over

    @property
    def goes_on(self) -> bool:
        """Whether the old budget holds: nobody has decided anything since."""
        return self.unfinished or self.story.state == RunState.PREEMPTED

    def told(self, name: str) -> dict[str, Any] | None:
        """The newest event of that name, of the last attempt."""
        return next((event for event in reversed(self.events) if event["msg"] == name), None)

    def verdict(self) -> Verdict | None:
        """The verdict on the last attempt, if it was told."""
        event = self.told("verdict")
        return retold(event) if event else None

    def began(self, now: float) -> float:
        """When the last attempt was started, by the machine's clock; `now` at the latest, as of one that was not told."""
        return min(float((self.told("attempt_started") or {}).get("mono", now)), now)

    @property
    def unsettled(self) -> bool:
        """Whether the last attempt is still to be judged: no supervisor has decided what follows it."""
        return self.unfinished and not any(self.told(name) for name in _SETTLED)


def retold(event: Mapping[str, Any]) -> Verdict | None:
    """The verdict that a `verdict` event tells of; None if that is garbled, or its cause is one of a newer version."""
    try:
        return msgspec.convert({**event, "at": event["mono"], "failed_at": event["failed_mono"]}, Verdict)
    except (KeyError, ValueError):
        return None


def previous_of(run: RunDir) -> Previous:
    """What is known of `run`. The caller holds its lock."""
    events = read_events(run.events)[0]
    story = tell(events)
    last = max([*run.attempts(), *(attempt.number for attempt in story.attempts)], default=-1)
    return Previous(
        story,
        last,
        tuple(event for event in events if event.get("attempt") == last),
        frozenset(e["step"] for e in events if e["msg"] == "checkpoint_committed" and isinstance(e.get("step"), int)),
        frozenset(str(e.get("fault")) for e in events if e["msg"] == "fault_injected"),
        frozenset(e["number"] for e in events if e["msg"] == "fault_armed" and isinstance(e.get("number"), int)),
    )
