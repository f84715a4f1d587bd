"""The part of a run that a reader wants to see."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from supervisor.reading.events_file import Event
from supervisor.reading.wording import event_text
from trainer.rundir.duration import parse_duration

LEVELS = ("info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Choice:
    """The filters of tail and events. A record is shown if every filter accepts it."""

    attempt: int | None = None
    """A negative number counts from the last attempt."""
    rank: int | None = None
    """Only this rank's log, and no event about another rank."""
    every_event: bool = False
    """Whether events about other ranks are shown too."""
    level: str = "info"
    names: frozenset[str] = frozenset()
    """Only these events. None means all."""
    grep: re.Pattern[str] | None = None
    since: float | None = None
    """Seconds since the epoch. Of logs, too, as far as their lines have times."""
    until: float | None = None
    logs: bool = True
    events: bool = True

    def event(self, event: Event) -> bool:
        """Whether the event is wanted. An event whose `ts` is not a time is never too old."""
        fields = event.fields
        return (
            self.events
            and (not self.names or event.name in self.names)
            and _severity(fields.get("level")) >= _severity(self.level)
            and (self.rank is None or self.every_event or fields.get("rank") in (None, self.rank))
            and self.during(event.time if self.since is not None or self.until is not None else None)
            and self.text(event_text(event) if self.grep else "")
        )

    def during(self, time: float | None) -> bool:
        """Whether something of that time is wanted. What has no time is never too old, nor too new."""
        if time is None:
            return True
        return (self.since is None or time >= self.since) and (self.until is None or time <= self.until)

    def text(self, shown: str) -> bool:
        return self.grep is None or self.grep.search(shown) is not None


EVERYTHING = Choice()


def _severity(level: object) -> int:
    return LEVELS.index(level) if level in LEVELS else 0


def parse_since(text: str, now: float) -> float:
    """Seconds since the epoch of `3h` or `-3h` before `now`, or of an ISO time (local unless it names a zone).

    ValueError tells what is accepted.
    """
    try:
        return now - parse_duration(text.strip().removeprefix("-"))
    except ValueError:
        pass
    try:
        return datetime.datetime.fromisoformat(text.strip().replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{text!r} is no moment; write how long ago, like 30m or 3h, or a time like 2026-11-24T02:26"
        ) from None
