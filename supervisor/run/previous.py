"""The state that earlier supervisors of a run have left: its events, and a group that may be adopted.

    the last attempt is settled (the next step was decided, or it was given up)  ->  nothing to adopt
    its group is not the wanted one now, or cannot be told from others           ->  nothing to adopt
    the verdict on it was told                                                   ->  adopted in STOPPING, with it
    its launcher lives, or has reported how it ended                             ->  adopted in RUNNING
    its launcher was killed                                                      ->  nothing to adopt

Processes that are not adopted are ended, and verified gone, before anything else is launched.
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
"""After one of these events an attempt is settled."""


@dataclass(frozen=True, slots=True)
class Previous:
    """A run as its events tell it, before a new supervisor writes any event."""

    story: Story = field(default_factory=Story)
    last_attempt: int = -1
    """The highest attempt number that was ever used, with an event or not. It is never used again."""
    events: tuple[dict[str, Any], ...] = ()
    """The events of the last attempt."""
    checkpoints: frozenset[int] = frozenset()
    """The steps of the checkpoints that the events tell of."""
    faults_fired: frozenset[str] = frozenset()
    faults_armed: frozenset[int] = frozenset()
    nodes: Mapping[int, str] = field(default_factory=dict)
    """Those of the newest attempt of which events tell, and their hosts; none on one node. That may be the one before
    the last: a supervisor may die after the release and before it is told."""

    @property
    def unfinished(self) -> bool:
        """Whether a supervisor died before it could end the run."""
        return self.story.started is not None and not self.story.over

    @property
    def goes_on(self) -> bool:
        """Whether the old budget is still valid, because nothing was decided since."""
        return self.unfinished or self.story.state == RunState.PREEMPTED

    def told(self, name: str) -> dict[str, Any] | None:
        """The newest event of that name in the last attempt."""
        return next((event for event in reversed(self.events) if event["msg"] == name), None)

    def verdict(self) -> Verdict | None:
        """The verdict on the last attempt, if it was told."""
        event = self.told("verdict")
        return retold(event) if event else None

    def began(self, now: float) -> float:
        """The start of the last attempt, by the machine's clock. It is `now` if no event tells it, and never later."""
        return min(float((self.told("attempt_started") or {}).get("mono", now)), now)

    @property
    def unsettled(self) -> bool:
        """Whether the last attempt must still be judged: no supervisor has decided the next step."""
        return self.unfinished and not any(self.told(name) for name in _SETTLED)


def retold(event: Mapping[str, Any]) -> Verdict | None:
    """The verdict in a `verdict` event. None if it is damaged, or its cause is from a newer version."""
    try:
        return msgspec.convert({**event, "at": event["mono"], "failed_at": event["failed_mono"]}, Verdict)
    except (KeyError, ValueError):
        return None


def previous_of(run: RunDir) -> Previous:
    """The known state of `run`. The caller holds its lock."""
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
        _nodes(next((e for e in reversed(events) if e["msg"] == "attempt_started"), {})),
    )


def _nodes(started: Mapping[str, Any]) -> dict[int, str]:
    nodes = started.get("nodes")
    return {int(n): str(host) for n, host in nodes.items() if n.isdecimal()} if isinstance(nodes, dict) else {}
