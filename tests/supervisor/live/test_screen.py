"""The full screen of `watch`, for any terminal and any run."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from supervisor.core.telling.ledger import Stretch, ledger
from supervisor.core.telling.story import tell
from supervisor.live.numbers import Numbers
from supervisor.live.screen import Picture, Row, bars, goodputs, screen
from supervisor.live.view import Now
from trainer.rundir.codes import Phase
from trainer.rundir.records.beats import Beat, Source


def picture(ranks: int) -> Picture:
    events = [
        {"msg": "run_started", "mono": 0.0},
        {"msg": "attempt_started", "mono": 1.0, "attempt": 0},
        {"msg": "first_step", "mono": 10.0, "at_mono": 10.0, "step": 1, "from_step": 0},
        {"msg": "straggler", "mono": 20.0, "rank": 5, "slow": True, "text": "rank 5 takes 2 times as long"},
    ]
    story = tell(events)
    beats = tuple(Beat(rank, 1, 40 + rank, Phase.TRAIN, 99.5, Source.HOOK, 0, 0, 0.0) for rank in range(ranks))
    numbers = Numbers(step=40, total=1000, step_ms=100.0, eta_s=96.0, loss=2.5)
    now = Now(story, "running", beats, numbers, dict.fromkeys(range(ranks), 0.1), {}, None, None)
    return Picture(
        title="gpt-7f3a  attempt 0  8 x -m trainer --steps 1000 --data some/where/far/away",
        now=now,
        at=100.0,
        clock="02:03:04",
        losses=[5.0 - 0.01 * n for n in range(250)],
        goodputs=[0.0, 0.5, 1.0],
        book=ledger(story, 100.0),
        events=[Row(f"02:03:0{n} checkpoint of step {n}") for n in range(9)],
        logs=[f"r0 │ 行 {n} " + "wide " * 50 for n in range(60)],
    )


@pytest.mark.parametrize("ranks", [0, 2, 64])
@pytest.mark.parametrize("columns", [1, 2, 12, 40, 80, 200])
@pytest.mark.parametrize("rows", [1, 5, 24, 50])
def test_it_fits(ranks: int, columns: int, rows: int) -> None:
    found = screen(picture(ranks), columns, rows)
    assert len(found) <= rows and all(cell_len(row.text) < columns for row in found)
    if columns >= 80 and rows >= 24:
        text = "\n".join(row.text for row in found)
        said = ("gpt-7f3a", "02:03:04", "running  40/1000 4 %", "loss ", "goodput ", "ledger ", "── events", "── log")
        assert all(part in text or part.replace("40/1000", "step 40 of 1000,") in text for part in said)
        assert len(found) == rows


def test_a_straggler_is_never_left_out() -> None:
    """Of many ranks those are shown that need a look."""
    found = screen(picture(64), 80, 24)
    (row,) = [row for row in found if row.text.endswith("slow")]
    assert row.text.split()[:2] == ["5", "45"] and row.style == "yellow"
    assert any(row.text.startswith("and ") and "more" in row.text for row in found)


def test_bars() -> None:
    """The mean of each part, between the least and the greatest."""
    assert bars([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 8) == "▁▂▃▄▅▆▇█"
    assert bars([0.0, 0.0, 1.0, 1.0], 2, 0.0, 1.0) == "▁█" and bars([3.0] * 5, 4) == "▁▁▁▁"
    assert bars([], 5) == bars([1.0], 0) == ""


def test_goodputs() -> None:
    """Shares of parts of the time line; together they are the whole."""
    line = [Stretch("launch", 100.0, 110.0), Stretch("productive", 110.0, 125.0), Stretch("redone", 125.0, 140.0)]
    assert goodputs(line, 4) == [0.0, 1.0, 0.5, 0.0]
    assert sum(goodputs(line, 7)) * 40 / 7 == pytest.approx(15.0)
    assert goodputs([], 4) == []
