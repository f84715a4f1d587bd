"""The time line of a run. The monotonic clock begins anew at each boot; the wall clock bridges the gap. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

Event = Mapping[str, Any]
_LONGEST = 1e12
"""Seconds. No machine has been up for as long."""


class TimeLine:
    """Puts the times of events on one line, event by event."""

    def __init__(self) -> None:
        self.offset = 0.0
        """Seconds that are added to the clock of the newest event."""
        self._before: tuple[Event, float] | None = None
        self.boot: object = None
        """The boot by whose clock the newest event is, if any event has told."""

    def place(self, event: Event) -> dict[str, Any] | None:
        """The event with its times on the line. None if it has no time."""
        mono, before = _time(event.get("mono")), self._before
        if mono is None:
            return None
        # The clock may be ahead of the last boot's, if this boot is the longer one. Then only the boot id shows a
        # reboot.
        rebooted = self.boot is not None and event.get("boot") not in (None, self.boot)
        self.boot = event.get("boot") or self.boot
        if before is not None and (mono < before[1] or rebooted):
            self.offset += before[1] - mono + max(0.0, (wall(event) or 0.0) - (wall(before[0]) or 0.0))
        self._before = event, mono
        moved = dict(event)
        for key in ("mono", "at_mono", "failed_mono", "fired_mono", "noted_mono", "wanted_mono"):
            if (at := _time(moved.get(key))) is not None:
                moved[key] = at + self.offset
        return moved


def one_line(events: Iterable[Event]) -> Iterator[tuple[dict[str, Any], float]]:
    """`events` with their times on one line. With each event: the seconds that are added to its clock. Events without a
    time are left out."""
    line = TimeLine()
    for event in events:
        if (moved := line.place(event)) is not None:
            yield moved, line.offset


def _time(value: object) -> float | None:
    """Seconds of a clock. None if the value cannot be from one of our clocks."""
    return float(value) if isinstance(value, int | float) and abs(value) < _LONGEST else None


def wall(event: Event) -> float | None:
    """The time of the event in seconds since the epoch; None if its `ts` is no time."""
    try:
        return datetime.fromisoformat(str(event.get("ts")).replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
