"""The time line of a run: the monotonic clock begins anew with each boot, the wall clock spans it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

Event = Mapping[str, Any]
_LONGEST = 1e12
"""Seconds; no machine has been up for as long."""


def one_line(events: Iterable[Event]) -> Iterator[tuple[dict[str, Any], float]]:
    """`events` with their times on one line, and what is to be added to the clock as of each. One without a time is
    left out."""
    offset = 0.0
    before: tuple[Event, float] | None = None
    boot: object = None
    for event in events:
        mono = _time(event.get("mono"))
        if mono is None:
            continue
        # A machine that has been up for longer than the one before was gives no other sign than the name of its boot.
        rebooted = boot is not None and event.get("boot") not in (None, boot)
        boot = event.get("boot") or boot
        if before is not None and (mono < before[1] or rebooted):
            offset += before[1] - mono + max(0.0, _wall(event) - _wall(before[0]))
        before = event, mono
        moved = dict(event)
        for key in ("mono", "at_mono", "failed_mono", "fired_mono", "noted_mono", "wanted_mono"):
            if (at := _time(moved.get(key))) is not None:
                moved[key] = at + offset
        yield moved, offset


def _time(value: object) -> float | None:
    """Seconds of a clock; None for what no clock of ours has shown."""
    return float(value) if isinstance(value, int | float) and abs(value) < _LONGEST else None


def _wall(event: Event) -> float:
    try:
        return datetime.fromisoformat(str(event.get("ts")).replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
