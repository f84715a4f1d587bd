"""A small table in plain text: the same on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from supervisor.plain import plain


def columns(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lines with each column as wide as its widest cell, the last one as it is; fit for a terminal."""
    table = [[plain(str(cell)) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[n]) for row in table) for n in range(len(header) - 1)]
    return "\n".join(
        "  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in table
    )


def human_bytes(count: float) -> str:
    """1.5 GB for 1500000000: powers of 1000, as disks are sold and free space is shown."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
