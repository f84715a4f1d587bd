"""Sizes and times as people say them."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """1.5 GB for 1500000000. The units are powers of 1000, as for disks and free space."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def human_seconds(seconds: float) -> str:
    """`40 s`, `3 min`."""
    return f"{seconds:.0f} s" if seconds < 100.0 else f"{seconds / 60:.0f} min"
