"""Durations as people write them: 250ms 30s 5m 2h 1d, or plain seconds."""

from __future__ import annotations

import re

_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d|)$")

LONGEST = 100_000 * 86400.0
"""The longest duration, in seconds. No system call could wait longer."""


def parse_duration(text: str) -> float:
    """Seconds, zero or more. ValueError says what is accepted."""
    match = _DURATION.match(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a duration; write one like 30s, 5m or 2h")
    seconds = float(match[1]) * _UNIT[match[2]]
    if seconds > LONGEST:
        raise ValueError(f"{text[:40]!r} is more than {LONGEST / 86400:.0f}d")
    return seconds


def spelled(seconds: float) -> str:
    """A text that parse_duration() reads as `seconds`, in the largest unit that gives a whole number."""
    for unit in ("d", "h", "m", "s", "ms"):
        count = seconds / _UNIT[unit]
        if count >= 1 and count.is_integer():
            return f"{count:.0f}{unit}"
    return f"{seconds:f}s"
