"""What a flush counts for under "auto": its own time, whatever the steps beside it take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.support.training import SAVE, Here, training
from trainer.checkpoint.memory import board, snapshots, tier

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")


class Clock(SimpleNamespace):
    """One for the ranks and for whoever clears the pins."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return int(self.now * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tier, "time", clock)
    monkeypatch.setattr(board, "time", clock)
    return clock


@pytest.mark.parametrize("step_s", [3.0, 300.0])
def test_a_flush_counts_for_as_long_as_it_took(here: Here, clock: Clock, step_s: float) -> None:
    """Not for the step that passed before it was told, nor for as long as nobody asked whether it is over: the interval
    of the rule "auto" is made of it."""
    with training() as made:
        made.run(1, SAVE)
        clock.now = step_s
        made.run(2)
        clock.now = step_s + 3.0
        snapshots.clear_pins(here.segment)
        clock.now = 2 * step_s
        made.run(3)
        clock.now = 1000.0
        made.run(4)
        share = 0.1 if made.memory().spare else 1.0
        # What the snapshots themselves take is counted, too, and is the machine's.
        assert 3 * share <= made.ckpt._interval.cost_s < 100 * share


def test_a_flush_that_does_not_tell_its_end(here: Here, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of an older version: it counts until a step has seen that it is over."""
    monkeypatch.setattr(board, "time", SimpleNamespace(monotonic_ns=lambda: 0))
    with training() as made:
        made.run(1, SAVE)
        clock.now = 1.0
        made.run(2)
        snapshots.clear_pins(here.segment)
        clock.now = 4.0
        made.run(3)
        share = 0.1 if made.memory().spare else 1.0
        assert 3 * share <= made.ckpt._interval.cost_s < 100 * share


def test_one_slow_flush(here: Here, clock: Clock) -> None:
    """Among quick ones it changes little: the next save is not put off for it."""
    with training() as made:
        for at, seconds in enumerate((1.0, 1.0, 500.0)):
            made.run(2 * at + 1, SAVE)
            made.run(2 * at + 2)
            clock.now += seconds
            snapshots.clear_pins(here.segment)
        made.run(7)
        share = 0.1 if made.memory().spare else 1.0
        assert share <= made.ckpt._interval.cost_s < 100 * share
