"""Tables on a terminal of any width: nothing is cut, and what is there to be copied stays whole."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.reading.table import table

NAMES = st.text("abcdefghij-0123456789", min_size=1, max_size=24)
TEXTS = st.lists(st.text("abcdefghij", min_size=1, max_size=12), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(NAMES, TEXTS, NAMES, TEXTS), min_size=1, max_size=5),
    width=st.integers(20, 200),
)
def test_nothing_is_cut(rows: list[tuple[str, ...]], width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True)
        patch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))
        shown = table(("run", "why", "step", "what"), rows)
    words = shown.split()
    for name, why, step, what in rows:
        assert {name, step, *why.split(), *what.split()} <= {*words}
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown


def test_a_pipe_has_a_line_for_each_row() -> None:
    rows = [("a" * 30, "word " * 100, None)]
    assert len(table(("run", "why", "step"), rows).splitlines()) == 2
