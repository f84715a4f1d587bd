"""Tables for people, by rich. Plain text if stdout is no terminal."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from supervisor.reading.plain import plain


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns, one line for each row. None is shown as a dash. Nothing is cut if the output goes to a file or a
    pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        drawn.add_column(head.upper(), no_wrap=True)
    for row in rows:
        # Text, not markup: a run's name or a reason must not be read as a style.
        drawn.add_row(*(Text("-" if cell is None else plain(str(cell))) for cell in row))
    terminal = sys.stdout.isatty()
    out = io.StringIO()
    width = shutil.get_terminal_size().columns if terminal else 10_000
    Console(file=out, force_terminal=terminal, width=width, no_color=bool(os.environ.get("NO_COLOR"))).print(drawn)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())
