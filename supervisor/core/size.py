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
    """`40 s`, `3 min`, `1 h`, `1.5 h`, `2 d`."""
    if seconds < 100.0:
        return f"{seconds:.0f} s"
    if seconds < 3570.0:
        return f"{seconds / 60:.0f} min"
    count, unit = (seconds / 3600, "h") if seconds < 48 * 3600 else (seconds / 86400, "d")
    return f"{count:.1f}".removesuffix(".0") + f" {unit}"


def counted(number: float, word: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:g} {word}" if number == 1 else f"{number:g} {word}s"
