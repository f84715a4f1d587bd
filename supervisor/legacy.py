"""What earlier supervisors of a run have left: what its events tell, and a gang that may be adopted.

    the last attempt is settled (its successor decided, or written off)  ->  nothing to adopt
    its gang is not what is asked for now, or cannot be told from others ->  nothing to adopt
    the verdict on it was told                                           ->  adopted, in STOPPING: the verdict stands
    its launcher lives, or has reported how it ended                     ->  adopted, in RUNNING: it is judged as ever
    its launcher was killed                                              ->  nothing to adopt

What is not adopted is ended and verified gone before anything else is launched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from supervisor import status as statuses
from supervisor.core.machine import retold
from supervisor.core.model import Verdict
from supervisor.core.story import Story, tell
from supervisor.gang import Gang
from supervisor.launch import is_as_asked
from supervisor.reading.events_file import read_events
from supervisor.spec import Spec
from trainer.rundir.layout import RunDir

_SETTLED = ("relaunch_scheduled", "takeover", "run_ended")
"""Events after which an attempt is nobody's any more."""


@dataclass(frozen=True, slots=True)
class Legacy:
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
    def unfinished(self) -> bool:
        """Whether a supervisor died before it could end the run."""
        return self.story.started is not None and self.story.state not in statuses.OVER

    @property
    def goes_on(self) -> bool:
        """Whether the old budget holds: nobody has decided anything since."""
        return self.unfinished or self.story.state == "preempted"

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

    def gang(self, run: RunDir, spec: Spec) -> Gang | None:
        """The gang of the last attempt, to be adopted."""
        settled = any(self.told(name) for name in _SETTLED)
        if not self.unfinished or settled or spec.resume == "never":
            return None
        for folder in run.standby.glob("[0-9]*"):
            found = Gang.released(folder, spec.mark)
            if found is None:
                continue
            gang, body = found
            known = gang.launcher is not None or gang.gate.launcher_report.exists() or self.verdict() is not None
            if body.get("attempt") == self.last_attempt and is_as_asked(spec, body) and known:
                return gang
            gang.abandon()
        return None


def legacy_of(run: RunDir) -> Legacy:
    """What is known of `run`. The caller holds its lock."""
    events = read_events(run.events)[0]
    story = tell(events)
    last = max([*run.attempts(), *(attempt.number for attempt in story.attempts)], default=-1)
    return Legacy(
        story,
        last,
        tuple(event for event in events if event.get("attempt") == last),
        frozenset(e["step"] for e in events if e["msg"] == "checkpoint_committed" and isinstance(e.get("step"), int)),
        frozenset(str(e.get("fault")) for e in events if e["msg"] == "fault_injected"),
        frozenset(e["number"] for e in events if e["msg"] == "fault_armed" and isinstance(e.get("number"), int)),
    )
