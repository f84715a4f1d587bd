"""Tables for people, by rich. Plain text if stdout is no terminal."""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from supervisor.reading.plain import plain

_WHOLE = 24
"""Cells up to this many characters are never broken: names, numbers and times are there to be copied."""


def folded(line: str, indent: int = 4) -> str:
    """The line, over several lines between its words where the terminal is narrower. The others are indented."""
    if not sys.stdout.isatty():
        return line
    width = max(shutil.get_terminal_size().columns, 2 * indent)
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
        replace_whitespace=False,
        expand_tabs=False,
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns. None is shown as a dash. Long texts go over several lines where the terminal is narrow; nothing
    is cut. In a file or a pipe each row is one line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [["-" if cell is None else plain(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else 10_000
    narrow = sum(widths) + 2 * (len(widths) - 1) > width
    # A narrower terminal breaks the lines itself.
    width = max(width, sum(min(widest, _WHOLE) + 1 for widest in widths))
    drawn = Table(box=None, pad_edge=False, padding=(0, 1 if narrow else 2, 0, 0), header_style="bold")
    for head, widest in zip(heads, widths, strict=True):
        whole = widest <= _WHOLE
        drawn.add_column(head.upper(), no_wrap=whole, min_width=widest if whole else None, overflow="fold")
    for row in cells:
        # Text, not markup: a run's name or a reason must not be read as a style.
        drawn.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, force_terminal=terminal, width=width, no_color=bool(os.environ.get("NO_COLOR"))).print(drawn)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())
