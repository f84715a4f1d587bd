"""The time line of a run. The monotonic clock begins anew at each boot; the wall clock bridges the gap. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

Event = Mapping[str, Any]
_LONGEST = 1e12
"""Seconds. No machine has been up for as long."""


def one_line(events: Iterable[Event]) -> Iterator[tuple[dict[str, Any], float]]:
    """`events` with their times on one line. With each event: the seconds that are added to its clock. Events without a
    time are left out."""
    offset = 0.0
    before: tuple[Event, float] | None = None
    boot: object = None
    for event in events:
        mono = _time(event.get("mono"))
        if mono is None:
            continue
        # The clock may be ahead of the last boot's, if this boot is the longer one. Then only the boot id shows a
        # reboot.
        rebooted = boot is not None and event.get("boot") not in (None, boot)
        boot = event.get("boot") or boot
        if before is not None and (mono < before[1] or rebooted):
            offset += before[1] - mono + max(0.0, (wall(event) or 0.0) - (wall(before[0]) or 0.0))
        before = event, mono
        moved = dict(event)
        for key in ("mono", "at_mono", "failed_mono", "fired_mono", "noted_mono", "wanted_mono"):
            if (at := _time(moved.get(key))) is not None:
                moved[key] = at + offset
        yield moved, offset


def _time(value: object) -> float | None:
    """Seconds of a clock. None if the value cannot be from one of our clocks."""
    return float(value) if isinstance(value, int | float) and abs(value) < _LONGEST else None


def wall(event: Event) -> float | None:
    """The time of the event in seconds since the epoch; None if its `ts` is no time."""
    try:
        return datetime.fromisoformat(str(event.get("ts")).replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
