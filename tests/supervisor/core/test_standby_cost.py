"""What the making of a standby takes from the steps beside it: found where it is, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.standby.cost import LEAST, LONGEST, SHORTEST, Cost, Meter, Pace, cost, median
from supervisor.core.telling import figures
from supervisor.core.telling.ledger import ledger, report
from supervisor.core.telling.story import tell

paces = st.lists(st.builds(Pace, st.floats(1e-4, 10.0), st.integers(1, 50)), max_size=20)


def steps(*parts: tuple[int, float, bool]) -> Iterator[tuple[int, float, bool]]:
    """(step, time, making) of so many steps that took so long each, beside a making or not."""
    step, at = 0, 100.0
    yield step, at, parts[0][2]
    for count, seconds, making in parts:
        for _ in range(count):
            step, at = step + 1, at + seconds
            yield step, at, making


def measured(*parts: tuple[int, float, bool], attempt: int = 0, meter: Meter | None = None) -> list[Cost]:
    meter = meter or Meter()
    looks = [meter.see(attempt, step, at, making) for step, at, making in steps(*parts)]
    return [found for found in looks if found is not None]


def test_slower_steps_are_the_cost() -> None:
    """20 steps of 120 ms in place of 100: 0.4 s, 20 %. A save that holds up one step, on either side, changes
    nothing."""
    (plain,) = measured((20, 0.12, True), (100, 0.1, False))
    (stalled,) = measured((10, 0.12, True), (1, 3.0, True), (9, 0.12, True), (5, 0.1, False), (1, 3.0, False),
                          (100, 0.1, False))  # fmt: skip

    assert plain.seconds == pytest.approx(0.4, abs=0.03) and plain.share == pytest.approx(0.2, abs=0.01)
    assert plain.made_s == pytest.approx(2.4, abs=0.15)
    assert stalled.share == pytest.approx(0.2, abs=0.01) and stalled.seconds == pytest.approx(0.4, abs=0.03)


def test_what_is_too_short_tells_nothing() -> None:
    """Few steps beside, an attempt that ends before enough were seen afterwards, and no making at all."""
    assert measured((LEAST - 2, 1.0, True), (100, 1.0, False)) == []
    assert measured((20, 0.1, True), (3, 0.1, False)) == []
    assert measured((200, 0.1, False)) == []
    meter = Meter()
    assert measured((20, 0.1, True), (3, 0.1, False), meter=meter) == []
    assert measured((200, 0.1, False), attempt=1, meter=meter) == []


def test_made_anew_is_one_making() -> None:
    """A group that gives way at once to one with more imports; a later one is a making of its own."""
    found = measured(
        (20, 0.12, True), (2, 0.1, False), (20, 0.12, True), (100, 0.1, False), (20, 0.15, True), (100, 0.1, False)
    )

    assert [round(one.share, 1) for one in found] == [0.2, 0.5]
    assert found[0].made_s == pytest.approx(40 * 0.12, abs=0.3)


def test_a_making_between_two_steps_counts() -> None:
    """It began and ended while one step was made."""
    meter = Meter()
    for step in range(20):
        meter.see(0, step, float(step), False)
        meter.see(0, step, float(step), True)
    found = [meter.see(0, step, 20.0 + (step - 20) * 0.5, False) for step in range(20, 60)]

    assert [round(one.share, 6) for one in found if one is not None] == [1.0]


@given(paces, paces)
def test_cost_is_between_the_paces(beside: list[Pace], after: list[Pace]) -> None:
    """The medians are paces that were seen, so the cost lies between the extremes; too few steps give none. It does not
    depend on the order, and the other way round it has the other sign."""
    found = cost(beside, after)
    n, m = (sum(pace.steps for pace in side) for side in (beside, after))

    assert (found is None) == (n < LEAST or m < LEAST)
    if found is not None:
        slow, usual = [p.seconds for p in beside], [p.seconds for p in after]
        assert n * (min(slow) - max(usual)) - 1e-9 <= found.seconds <= n * (max(slow) - min(usual)) + 1e-9
        assert found.share > -1.0 and math.copysign(1.0, found.share) * found.seconds >= 0.0
        again = cost(beside[::-1], after[::-1])
        assert again is not None and (again.seconds, again.share) == (found.seconds, found.share)
        back = cost(after, beside)
        assert back is not None and back.seconds * found.seconds <= 0.0


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-5, 60), st.floats(0, 1e4), st.booleans()), max_size=80))
def test_meter_takes_any_looks(looks: list[tuple[int, int, float, bool]]) -> None:
    """Steps that go back, times that stand still, attempts in any order."""
    meter = Meter()
    for attempt, step, at, making in looks:
        found = meter.see(attempt, step, at, making)
        if found is not None:
            assert math.isfinite(found.seconds) and found.share > -1.0 and found.made_s > 0.0


@given(st.integers(LEAST + 1, 200), st.floats(0.01, 0.5), st.floats(1.0, 3.0))
def test_share_of_steady_steps_is_exact(count: int, seconds: float, slower: float) -> None:
    """However long the making and the steps are."""
    enough = int(max(LONGEST, SHORTEST) / seconds) + 2 * LEAST
    found = measured((count, seconds * slower, True), (enough, seconds, False))

    assert len(found) == 1 and found[0].share == pytest.approx(slower - 1.0, abs=1e-6)


@given(st.lists(st.integers()))
def test_median_is_a_value_seen(values: list[int]) -> None:
    found = median(values)
    assert (found is None) == (not values)
    assert found is None or (found in values and sum(v <= found for v in values) * 2 >= len(values))


RUN = [
    {"mono": 0.0, "ts": "", "msg": "run_started"},
    {"mono": 0.0, "ts": "", "msg": "attempt_started", "attempt": 0},
    {"mono": 0.0, "ts": "", "msg": "first_step", "step": 1, "from_step": 0, "at_mono": 0.0},
]


def paid(mono: float, cost_s: object, share: object = 0.1, made_s: object = 2.0) -> dict[str, object]:
    fields = {"cost_s": cost_s, "share": share, "made_s": made_s}
    return {"mono": mono, "ts": "", "msg": "standby_cost", "attempt": 0, **fields}


def test_ledger_and_report_have_it() -> None:
    """A row beside the steps that it was taken from, and the median of one standby."""
    story = tell([*RUN, paid(5.0, 0.2), paid(6.0, -0.1, -0.05), paid(7.0, 0.5, 0.3, 4.0)])
    book = ledger(story, 10.0)

    assert book.seconds["standby"] == pytest.approx(0.6) and book.seconds["productive"] == pytest.approx(9.4)
    body = report(story, 10.0)
    assert body["standby"] == {"measured": 3, "cost_s": 0.2, "share": 0.1, "made_s": 2.0}
    assert figures.standbys(body["standby"]) == (
        "0.20 s a standby, median of 3: while it was made, for 2.0 s, steps took 10.0 % longer"
    )
    assert figures.standbys(report(tell(RUN), 10.0)["standby"]) == ""


def test_a_cost_below_the_noise() -> None:
    """It is not told as a gain."""
    body = report(tell([*RUN, paid(5.0, -0.3, -0.05, 3.0)]), 10.0)
    assert figures.standbys(body["standby"]) == (
        "nothing measurable for a standby: while it was made, for 3.0 s, steps took no longer"
    )


@given(st.lists(st.one_of(st.floats(), st.integers(), st.text(max_size=2), st.none()), max_size=5))
def test_ledger_adds_up_whatever_it_is_told(costs: list[object]) -> None:
    """More than there was, less than nothing, no number."""
    book = ledger(tell([*RUN, *(paid(1.0 + n, value) for n, value in enumerate(costs))]), 10.0)

    assert sum(book.seconds.values()) == pytest.approx(book.wall)
    assert all(value >= 0.0 for value in book.seconds.values())
