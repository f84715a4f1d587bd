"""Which events of a run are messages to its people, in their words, and how many. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor.core.model import Cause
from supervisor.core.words import EventName, RunState, Word

MOST = 10
"""The most messages in PER seconds, but for those of a run that failed: nobody reads the eleventh, and a service may
block who sends it."""
PER = 3600.0


class Kind(Word):
    """What a person can ask to be told."""

    FAILED = "failed"
    """The run has failed, or its supervisor has. A stop by the user is no failure, and neither is a preempted run,
    which an engine launches again."""
    HANG = "hang"
    """An attempt stood still, and is ended."""
    RECOVERED = "recovered"
    """The run trains again after a failure."""
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Notice:
    """One message."""

    kind: Kind
    title: str
    body: str


@dataclass(slots=True)
class Notices:
    """The messages of one supervisor."""

    wanted: Collection[Kind]
    command: str
    """How the run is looked at, for the end of each message."""
    _sent: deque[float] = field(default_factory=deque)
    _kept_back: int = 0
    _failing: bool = False

    def of(self, event: Mapping[str, Any]) -> Notice | None:
        """The message for `event`, or None. It counts as sent at the event's `mono`."""
        kind, what = self._read(event)
        if kind is None or kind not in self.wanted:
            return None
        now = float(event.get("mono", 0.0))
        while self._sent and self._sent[0] <= now - PER:
            self._sent.popleft()
        if len(self._sent) >= MOST and kind is not Kind.FAILED:
            self._kept_back += 1
            return None
        self._sent.append(now)
        more = f"\n{self._kept_back} earlier messages were kept back: at most {MOST} an hour" if self._kept_back else ""
        self._kept_back = 0
        word = {Kind.HANG: "hangs", Kind.RECOVERED: "trains again"}.get(kind, kind.value)
        return Notice(kind, f"{event.get('run', 'a run')} {word}", f"{what}{more}\n{self.command}")

    def _read(self, event: Mapping[str, Any]) -> tuple[Kind | None, str]:
        reason = str(event.get("reason") or "")
        match event.get("msg"):
            case EventName.VERDICT:
                self._failing = event.get("cause") not in (Cause.FINISHED, Cause.STOPPED_BY_USER, Cause.PREEMPTED)
                return (Kind.HANG, reason) if event.get("cause") in (Cause.HANG, Cause.STOPPED) else (None, "")
            case EventName.FIRST_STEP if self._failing:
                self._failing = False
                return Kind.RECOVERED, f"attempt {event.get('attempt')} trains from step {event.get('from_step')}"
            case EventName.RUN_ENDED if event.get("state") == RunState.FINISHED:
                return Kind.FINISHED, reason
            case EventName.RUN_ENDED if event.get("state") in (RunState.FAILED, RunState.STUCK):
                return Kind.FAILED, reason
            case EventName.SUPERVISOR_FAILED:
                return Kind.FAILED, f"its supervisor failed: {event.get('error')}"
        return None, ""
