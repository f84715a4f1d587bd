"""What each second of a rank was: from the looks of the supervisor to the drawing."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.telling.lanes import Lane, painted
from supervisor.core.telling.ledger import Stretch
from supervisor.core.telling.story import tell
from supervisor.live.lanes import MOST, Lanes, parts
from supervisor.pages.ranks import of_ranks, silences
from supervisor.reading.events_file import read_events
from tests.support.runs_on_disk import Writer
from trainer.rundir.codes import Doing, Phase
from trainer.rundir.layout import RunDir
from trainer.rundir.records.beats import Beat, Source


def beat(rank: int, phase: Phase, at: float, step: int = 0, doing: Doing = Doing.NONE, since: float = 0.0) -> Beat:
    return Beat(rank, 1000 + rank, step, phase, at, Source.HOOK, 0, 0, 0.0, doing=doing, since=since)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def told(run: RunDir) -> list[tuple[int, int, str, float, float]]:
    return [(part.attempt, part.rank, part.kind.word, part.begin, part.end) for part in parts(run)]


def test_what_ranks_do_beside_their_steps(run: RunDir) -> None:
    """Each phase of a start; then only what takes long, from its begin to the next step. A rank that is gone does
    nothing any more, and the next supervisor goes on with the file."""
    lanes = Lanes(run)
    lanes.see(0, [beat(0, Phase.STARTUP, 1.0)], 1.1)
    lanes.see(0, [beat(0, Phase.RESTORE, 2.0), beat(1, Phase.STARTUP, 1.5)], 2.1)
    lanes.see(0, [beat(0, Phase.TRAIN, 3.0, 1), beat(1, Phase.TRAIN, 3.1, 1)], 3.2)
    for n in range(2, 40):
        at = 3.0 + 0.1 * n
        lanes.see(0, [beat(rank, Phase.TRAIN, at, n) for rank in (0, 1)], at + 0.05)
    saving = beat(0, Phase.TRAIN, 6.9, 39, Doing.SAVING, 7.0)
    lanes.see(0, [saving, beat(1, Phase.TRAIN, 6.9, 39)], 7.2)
    assert len(told(run)) == 3
    for at in (7.6, 8.0):
        lanes.see(0, [saving, beat(1, Phase.TRAIN, 6.9, 39)], at)
    assert told(run)[-1] == (0, 0, "saving", 7.0, math.inf)
    lanes.see(0, [beat(0, Phase.TRAIN, 8.2, 40)], 8.3)
    lanes.close(9.0)
    lanes = Lanes(run)
    lanes.see(1, [beat(0, Phase.STARTUP, 10.0)], 10.1)
    lanes.close(11.0)

    assert told(run) == [
        (0, 0, "launch", 1.0, 2.0),
        (0, 1, "launch", 1.5, 3.1),
        (0, 0, "restore", 2.0, 3.0),
        (0, 1, "waiting", 6.9, 8.3),
        (0, 0, "saving", 7.0, 8.2),
        (1, 0, "launch", 10.0, 11.0),
    ]


def test_a_rank_that_waits_after_its_save(run: RunDir) -> None:
    """Its wait lasts to its next step: what it has told before the wait was seen does not end it."""
    lanes = Lanes(run)
    for n in range(1, 40):
        lanes.see(0, [beat(0, Phase.TRAIN, 0.1 * n, n)], 0.1 * n + 0.05)
    for at in (4.2, 4.6, 5.0, 5.4):
        lanes.see(0, [beat(0, Phase.TRAIN, 3.9, 39, since=4.1)], at)
    lanes.see(0, [beat(0, Phase.TRAIN, 5.5, 40, since=4.1)], 5.6)
    assert told(run)[-1] == (0, 0, "waiting", pytest.approx(3.9), 5.5)
    lanes.close(6.0)


def test_the_file_stays_small(run: RunDir) -> None:
    """The long stretches stay; garbage is nothing; a disk that refuses harms nothing."""
    lanes = Lanes(run)
    for n in range(2 * MOST):
        begin, length = 10.0 * n, 2.0 if n % 100 else 9.0
        lanes.see(0, [beat(0, Phase.TRAIN, begin, n + 1, Doing.SAVING, begin)], begin + length)
        lanes.see(0, [beat(0, Phase.TRAIN, begin + length, n + 2)], begin + length)
    lanes.close(1e9)
    found = parts(run)
    assert run.lanes.stat().st_size <= 24 * MOST and len(found) > MOST // 8
    assert Counter(round(part.end - part.begin) for part in found)[9] == 2 * MOST // 100 + 1

    for garbage in (b"", b"x" * 999, bytes(4800)):
        run.lanes.write_bytes(garbage)
        assert parts(run) == []
    nowhere = Lanes(RunDir(run.path / "nowhere"))
    nowhere.see(0, [beat(0, Phase.STARTUP, 1.0)], 1.1)
    nowhere.close(2.0)


CUTS = st.lists(st.integers(0, 60), min_size=2, max_size=12, unique=True).map(sorted)


@given(CUTS, st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=8))
def test_painted(cuts: list[int], over: list[tuple[int, int]]) -> None:
    """Every second is what is on top of it, once."""
    under = [Stretch(f"under{n}", a, b, 0) for n, (a, b) in enumerate(itertools.pairwise(cuts))]
    above = [Stretch(f"over{n}", begin, begin + long, 0) for n, (begin, long) in enumerate(sorted(over))]
    found = painted(under, above)

    assert all(one.end > one.begin for one in found)
    assert all(one.end <= next_.begin for one, next_ in itertools.pairwise(found))
    for second in range(90):
        here = [one.bucket for one in found if one.begin <= second < one.end]
        below = [one.bucket for one in under if one.begin <= second < one.end]
        tops = [one.bucket for one in above if one.begin <= second < one.end]
        assert len(here) == bool(below or tops)
        assert not tops or here[0] in tops
        assert tops or here == below


def test_the_drawing_of_ranks(tmp_path: Path) -> None:
    """A rank has its attempt's time, what it did itself over it, and nothing after its own end."""
    w = Writer(tmp_path / "run")
    w.event("run_started", 0.0, attempt=-1)
    w.event("attempt_started", 0.0, 0)
    w.event("group_ready", 10.0, 0)
    w.event("first_step", 20.0, 0, step=1, from_step=0, at_mono=20.0)
    w.event("pause", 60.0, 0, rank=1, kind="moving", text="rank 1 is at work")
    w.event("pause", 70.0, 0, rank=1, over=True, text="rank 1 goes on")
    w.event("verdict", 90.0, 0, cause="killed", rank=1, failed_mono=90.0, step=40)
    w.event("group_gone", 95.0, 0)
    w.event("run_ended", 100.0, 0, state="failed")
    lanes = Lanes(w.run)
    lanes.see(0, [beat(0, Phase.TRAIN, 40.0, 9, Doing.EVALUATING, 40.0)], 50.0)
    lanes.see(0, [beat(0, Phase.TRAIN, 50.0, 10)], 50.0)
    lanes.close(100.0)
    events = read_events(w.run.events)[0]
    story = tell(events)
    drawn = of_ranks(story, parts(w.run), silences(story, events), {(0, 1): 90.0}, 2, 0.0)

    assert drawn is not None
    rows = [{shape.kind: shape.path for shape in row.shapes} for row in drawn.rows]
    assert rows[0]["evaluating"] == "M400 0h100v15h-100z" and rows[1]["waiting"] == "M600 0h100v15h-100z"
    assert rows[0]["productive"] == "M200 0h200v15h-200zM500 0h400v15h-400z"
    ends = [
        max(float(x) + float(wide) for shape in row.shapes for x, wide in ENDS.findall(shape.path))
        for row in drawn.rows
    ]
    assert ends == [950.0, 900.0] and [len(row.marks) for row in drawn.rows] == [0, 1]
    assert Lane.EVALUATING.word in drawn.rows[0].shapes[-1].title or len(drawn.rows[0].shapes) == 5


ENDS = re.compile(r"M([\d.]+) 0h([\d.]+)")
