"""Stragglers: a rank that is slower step after step is told, and told to be over; a slow moment is not."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.hangs.straggler import FINE, SLOW, STREAK, WINDOW, Arrivals, Straggler, arrive
from supervisor.core.model import RankView
from tests.support.supervised import Run
from tests.support.waiting import until
from trainer.rundir.codes import Phase

SCRIPT = """
import time
import torch, torch.distributed as dist
from torch import nn
from trainer.rundir.codes import Phase
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
model = DistributedDataParallel(nn.Linear(8, 8))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
while True:
    time.sleep(0.08 if dist.get_rank() == 1 else 0.02)
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def lives(works: list[list[float]]) -> list[Straggler]:
    """What is told of ranks whose own work takes so long, look by look, one step each."""
    known, told = Arrivals(), []
    views = [RankView(rank, 0, Phase.TRAIN, 0.0, False) for rank in range(len(works[0]))]
    known, _ = arrive(known, views)
    for moment in works:
        views = [
            RankView(view.rank, view.step + 1, Phase.TRAIN, 0.0, False, own=view.own + work)
            for view, work in zip(views, moment, strict=True)
        ]
        known, changes = arrive(known, views)
        told += changes
    return told


@given(st.lists(st.lists(st.floats(0.05, 0.05 * (SLOW - 0.01)), min_size=3, max_size=3), max_size=200))
def test_alike_is_nobody(works: list[list[float]]) -> None:
    """Ranks that differ by less than SLOW are all fine."""
    assert not works or lives(works) == []


@given(st.integers(0, 2), st.lists(st.integers(0, 5 * WINDOW), max_size=3, unique=True))
def test_slow_moments_are_nobody(rank: int, moments: list[int]) -> None:
    """A save or an evaluation by one rank now and then."""
    works = [[0.05 + (3.0 if look in moments and r == rank else 0.0) for r in range(3)] for look in range(6 * WINDOW)]

    assert lives(works) == []


def test_straggler_comes_and_goes() -> None:
    """Told once, and once when it is over; in between, near the line, nothing."""
    stages = [(0.1, 0.1), (0.1, 0.2), (0.1, 0.1 * (SLOW + FINE) / 2), (0.1, 0.1)]
    works = [list(stage) for stage in stages for _ in range((STREAK + 1) * WINDOW)]

    assert [(s.rank, s.slow) for s in lives(works)] == [(1, True), (1, False)]


def test_what_is_kept_does_not_grow() -> None:
    """Nothing of a rank alone, and the newest of one whose other makes no backward pass: both are looked at for
    days."""
    for others in (0, 1):
        known = Arrivals()
        for step in range(5 * WINDOW):
            still = [RankView(1, 0, Phase.TRAIN, 0.0, False)] * others
            known, _ = arrive(known, [RankView(0, step, Phase.TRAIN, 0.0, False, own=0.1 * step), *still])

        assert len(known.samples.get(0, ())) == others * WINDOW


def test_real_straggler_is_told_and_not_killed(run: Run, tmp_path: Path) -> None:
    """An unmodified script: an event, a line in `status`, and no verdict."""
    run.start("--nproc", "2", run.script(SCRIPT), OMP_NUM_THREADS="1")
    event = until(lambda: run.events("straggler"))[0]

    assert (event["rank"], event["slow"]) == (1, True)
    assert event["own_s"] >= 2 * event["others_s"]
    assert "rank 1 takes" in run.cli("status", "run").stdout
    assert [s["rank"] for s in json.loads(run.cli("status", "run", "--json").stdout)["stragglers"]] == [1]
    run.cli("stop", "run", "--now")
    assert run.wait() == 103
    assert run.verdicts() == []
