"""The time line of a run: the monotonic clock begins anew with each boot, the wall clock spans it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

Event = Mapping[str, Any]


def one_line(events: Iterable[Event]) -> Iterator[tuple[dict[str, Any], float]]:
    """`events` with their times on one line, and what is to be added to the clock as of each. One without a time is left
    out."""
    offset = 0.0
    before: Event | None = None
    boot: object = None
    for event in events:
        mono = event.get("mono")
        if not isinstance(mono, int | float):
            continue
        # A machine that has been up for longer than the one before was gives no other sign than the name of its boot.
        rebooted = boot is not None and event.get("boot") not in (None, boot)
        boot = event.get("boot") or boot
        if before is not None and (mono < before["mono"] or rebooted):
            offset += before["mono"] - mono + max(0.0, _wall(event) - _wall(before))
        before = event
        moved = dict(event)
        for key in ("mono", "at_mono", "failed_mono", "fired_mono", "noted_mono", "wanted_mono"):
            if isinstance(moved.get(key), int | float):
                moved[key] = float(moved[key]) + offset
        yield moved, offset


def _wall(event: Event) -> float:
    try:
        return datetime.fromisoformat(str(event.get("ts")).replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
