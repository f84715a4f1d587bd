"""Samples of stacks: counted by place, with the script's own line, for each rank."""

from __future__ import annotations

from collections import Counter

import pytest

from supervisor.core.telling.profile import OTHER, counted, shares

LIB = "/v/lib/python3.11/site-packages/torch"
STEP = f"thread (7): MainThread;<module> (/me/train.py:30);step (/me/train.py:12);all_reduce ({LIB}/c10d.py:2501)"
SAMPLES = f"""{STEP} 30
{STEP.replace(":2501", ":2502")} 30
thread (7): MainThread;<module> (/me/train.py:31) 20
thread (8): pin;run (/v/lib/python3.11/threading.py:9) 80
a line of somebody else
"""


def test_samples_are_counted_by_place() -> None:
    """The line of a library's function means nothing, the script's own does; other threads are left out."""
    assert counted(SAMPLES) == {"all_reduce (c10d.py) in step (train.py:12)": 60, "<module> (train.py:31)": 20}
    assert counted("thread (7): MainThread 5") == {OTHER: 5}
    assert counted("") == Counter()


def test_shares_are_of_each_ranks_own_samples() -> None:
    """The largest first; the rest is one row; each rank's column adds up to one; a rank without samples has none."""
    samples = {0: Counter(a=60, b=30, c=10), 3: Counter(b=5, d=5), 4: Counter[str]()}
    rows = shares(samples, 2)
    assert [row.place for row in rows] == ["b", "a", OTHER]
    assert rows[0].shares == {0: 0.3, 3: 0.5} and rows[0].mean == pytest.approx(0.4)
    assert all(sum(row.shares[rank] for row in rows) == pytest.approx(1.0) for rank in (0, 3))
    assert shares({4: Counter()}, 2) == []
