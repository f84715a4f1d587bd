"""Which old points of a curve are hidden by a process that goes on, for programs that count as they like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rank.progress import Position
from trainer.rank.trackers.curve import Point, cut, kept

STEPS: list[Point] = [("loss", step) for step in range(1, 76)]
RESUMED = Position(60, 61, 1)
ANEW = Position(0, 1, 1)


def tokens() -> list[Point]:
    return [point for _, step in STEPS for point in (("loss", step), ("tokens", 512 * step))]


def epochs() -> list[Point]:
    return [point for _, step in STEPS for point in [("loss", step), *([("accuracy", step // 10)] * (step % 10 == 0))]]


@pytest.mark.parametrize(
    ("old", "series", "step", "at", "start"),
    [
        pytest.param(STEPS, "loss", 61, RESUMED, 61, id="counted from 1"),
        pytest.param(STEPS, "loss", 60, RESUMED, 60, id="counted from 0"),
        pytest.param(STEPS, "loss", 60, Position(60, 60, 0), 60, id="an evaluation right after the load"),
        pytest.param(STEPS, "loss", 70, Position(60, 70, 10), 61, id="logged now and then"),
        pytest.param(STEPS, "new", 70, Position(60, 70, 10), 61, id="by a series that is new"),
        pytest.param(STEPS[:60], "loss", 61, RESUMED, None, id="nothing is written twice"),
        pytest.param(STEPS, "loss", 0, ANEW, 0, id="begun anew, from 0"),
        pytest.param(STEPS, "loss", 1, ANEW, 1, id="begun anew, from 1"),
        pytest.param([("text", 0), *STEPS], "text", 0, RESUMED, None, id="a text without a step"),
        pytest.param([("acc", 1), ("acc", 2), ("acc", 3)], "acc", 3, RESUMED, 3, id="epochs alone"),
        pytest.param(epochs(), "loss", 61, RESUMED, 61, id="epochs beside steps: the steps"),
        pytest.param(epochs(), "accuracy", 6, Position(60, 70, 10), None, id="epochs beside steps: the epochs"),
        pytest.param(tokens(), "loss", 61, RESUMED, None, id="tokens beside steps: the steps"),
        pytest.param(tokens(), "tokens", 512 * 61, RESUMED, 512 * 61, id="tokens beside steps: the tokens"),
        pytest.param(STEPS, "loss", 61, Position(None, 1, 1), 61, id="nothing tells the true step"),
        pytest.param(STEPS, "loss", 5, Position(None, 0, 0), None, id="nothing tells anything yet"),
    ],
)
def test_cut(old: list[Point], series: str, step: int, at: Position, start: int | None) -> None:
    assert cut(old, series, step, at) == start


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9))), st.integers(0, 9), st.integers(0, 9), st.data())
def test_what_is_hidden_counts_together(old: list[Point], step: int, began: int, data: st.DataObject) -> None:
    """Nothing before the program's place is hidden, and no series that counts otherwise."""
    done = data.draw(st.integers(began, 12))
    start = cut(old, "a", step, Position(began, done, done - began))
    if start is not None:
        assert start <= step
        hidden = [point for point in old if point not in kept([*old, start])]
        losing = {name for name, _ in hidden}
        together = [there for name, there in old if name in losing and there]
        assert hidden and together == sorted(together)
