"""How often a snapshot is taken under "auto": by what it costs, and by how often the run fails."""

from __future__ import annotations

import math

import pytest

from trainer.checkpoint.interval import Pace


def test_pace() -> None:
    """Every step at first; then so that the median cost is at most 0.5 % of the time."""
    pace = Pace()
    for step in range(9):
        pace.stepped(step * 0.1)
        pace.spent(0.0005)
    assert pace.every == 1
    for _ in range(9):
        pace.spent(0.00125)
    assert pace.every == 3
    pace.spent(100.0)
    assert pace.every == 3


def test_pace_of_a_run_that_fails_often() -> None:
    """As often as Young and Daly would have it, at a cost of 0.5 % to 1 % of the time."""
    for mtbf, every in ((math.inf, 8), (60.0, 7), (20.0, 4), (1.0, 4), (0.0, 4)):
        pace = Pace(mtbf)
        for step in range(9):
            pace.stepped(step * 0.1)
            pace.spent(0.0039)
        assert pace.every == every


@pytest.mark.parametrize(
    ("slower", "moving", "least", "most"), [(0.0, 0.1, 1, 2), (0.05, 0.2, 90, 110), (0.4, 0.02, 35, 45)]
)
def test_the_pace_counts_the_network(slower: float, moving: float, least: int, most: int) -> None:
    """A snapshot is on the network beside two steps of 100 ms. What they take longer is its cost, in half a percent of
    the time, but no more than it was on the network: other things hold up a step, too."""
    pace, since, beside, now = Pace(), 0, 0, 0.0
    for step in range(2000):
        now += 0.1 + (step % 7) * 1e-5 + (slower / 2 if beside else 0.0)
        pace.stepped(now, beside > 0)
        beside, since = max(0, beside - 1), since + 1
        if pace.due(since) and not beside:
            pace.spent(0.0001, moving)
            beside, since = 2, 0
    assert least <= pace.every <= most
