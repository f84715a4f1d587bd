"""Moments as people read them: in local time, to the second or the minute."""

from __future__ import annotations

from datetime import datetime

_WHOLE = "%Y-%m-%d %H:%M:%S"


def moment(iso: str) -> datetime | None:
    """The local time of an ISO time, as run.json and the events have it. None if it is no time."""
    try:
        return datetime.fromisoformat(iso.replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def local(iso: str) -> str:
    """`2026-11-27 02:03:12`; "?" if it is no time."""
    return at.strftime(_WHOLE) if (at := moment(iso)) else "?"


def local_epoch(seconds: float | None) -> str:
    """The same for seconds since the epoch."""
    try:
        return datetime.fromtimestamp(seconds).strftime(_WHOLE) if seconds is not None else "?"
    except (ValueError, OverflowError, OSError):
        return "?"


def clock(iso: str) -> str:
    """`02:03:12`."""
    return at.strftime("%H:%M:%S") if (at := moment(iso)) else "--:--:--"


def short(iso: str, now: datetime) -> str:
    """`11-27 02:03`; with the year if that is another than now. "?" if it is no time."""
    at = moment(iso)
    if at is None:
        return "?"
    return at.strftime("%m-%d %H:%M" if at.year == now.year else "%Y-%m-%d %H:%M")
