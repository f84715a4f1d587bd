"""FSDP2 over three nodes. None has the whole state; each has its own part, and that of the node before it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, NodesRun, cluster
from tests.support.machines import missing
from trainer.rundir.layout import committed_steps

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(missing()), reason=missing())]

STEPS = 60
NODES = (0, 1, 2)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    with cluster(3) as made:
        yield made


def test_a_machine_is_lost(nodes: Cluster, tmp_path: Path) -> None:
    """Its power goes, and all that is in its memory. Another machine takes its place: the run goes on from the newest
    step that had arrived, not from the disk, and ends with the bits of a run that nothing happened to."""
    whole = NodesRun(nodes, tmp_path / "whole", "3", STEPS, 0.0, sharded=True)
    whole.start(*NODES)
    assert [whole.wait(node) for node in NODES] == [0, 0, 0], whole.said(0)
    whole.assert_nothing_left(*NODES)

    run = NodesRun(nodes, tmp_path / "cut", "3", STEPS, 0.1, sharded=True)
    run.start(*NODES)
    run.until_step(25, world=3)
    nodes.power_off(2)
    nodes.machines[2].boot()
    run.start(2)
    assert [run.wait(node) for node in NODES] == [0, 0, 0], run.said(0)
    run.assert_nothing_left(*NODES)

    [change] = run.changes()
    assert change.still > 0 and change.lost <= 2, change
    begun = {noted.began for noted in run.noted() if noted.attempt > 0}
    assert len(begun) == 1 and min(begun) > 20
    assert not run.events("checkpoint_failed", "warning")
    assert committed_steps(run.dir.checkpoints)[-1] == STEPS
    assert run.bits() == whole.bits() and len(run.bits()) == 1
