"""A disk that takes only a part of a record, and has room again later: the files of records have whole ones alone."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.core.telling.progress import Trained
from supervisor.live.curve import Curve, samples
from supervisor.live.lanes import Lanes, parts
from tests.supervisor.live.test_lanes import beat
from trainer.rundir.codes import Phase
from trainer.rundir.layout import RunDir

_LIMIT = 4096
"""Bytes. It is no multiple of a record of either file."""


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """The kernel lets no file of this process grow beyond _LIMIT."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_a_curve_goes_on_after_a_short_write(run: RunDir) -> None:
    """What found no room is missing; every other sample is as it was seen."""
    looks = [Trained(step, 0, 100.0 + step, 2.0, step, 1e-3) for step in range(400)]
    curve = Curve(run)
    with no_room():
        for look in looks[:200]:
            curve.see(0, look)
    full = len(samples(run))
    for look in looks[200:]:
        curve.see(0, look)
    curve.close()
    found = samples(run)
    assert 0 < full < 100 and found[-1].step == 399 and len(found) > full + 150
    assert all(sample.at == 100.0 + sample.step == 100.0 + (sample.loss_step or 0) for sample in found)


def test_lanes_go_on_after_a_short_write(run: RunDir) -> None:
    """Each attempt is one stretch of one rank, or is missing."""
    lanes = Lanes(run)
    with no_room():
        for attempt in range(200):
            lanes.see(attempt, [beat(0, Phase.STARTUP, 1.0 + attempt)], 1.5 + attempt)
    full = len(parts(run))
    for attempt in range(200, 400):
        lanes.see(attempt, [beat(0, Phase.STARTUP, 1.0 + attempt)], 1.5 + attempt)
    lanes.close(401.0)
    found = parts(run)
    assert 0 < full < 100 and found[-1].attempt == 399 and len(found) >= full + 200
    assert all((part.rank, part.begin) == (0, 1.0 + part.attempt) for part in found)
