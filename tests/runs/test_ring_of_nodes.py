"""FSDP2 over three nodes. None has the whole state; each has its own part, and that of the node before it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, NodesRun, cluster
from tests.support.machines import missing
from trainer.rundir.layout import committed_steps

pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(missing()), reason=missing())]

STEPS = 60
NODES = (0, 1, 2)
KEPT = ("--lease", "5s")
"""A machine that stands still for a moment is not lost."""


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


@pytest.mark.parametrize("lost", [2, 0])
def test_the_job_is_started_again(nodes: Cluster, tmp_path: Path, lost: int) -> None:
    """A machine is lost and none takes its place, so the others end with 75. The snapshot that is whole on none of them
    stays in their memory, which they say; the job goes on from there when it is started again."""
    run = NodesRun(nodes, tmp_path, "3", 10_000, 0.1, sharded=True)
    run.start(*NODES, more=("--node-wait", "15s", *KEPT))
    run.until_step(25, world=3)
    nodes.power_off(lost)
    others = [node for node in NODES if node != lost]
    assert [run.wait(node) for node in others] == [75, 75], run.said(0)
    assert all(nodes.machines[node].shared_memory() for node in others)
    assert all("a part of" in run.said(node) for node in (others if lost == 0 else [0])), run.said(others[0])

    nodes.machines[lost].boot()
    run.start(*NODES, more=KEPT)
    run.until_step(10, world=3, after=0)
    [change] = run.changes()
    assert change.lost <= 2, change
    assert run.events("resumed")[-1]["source"] == "memory"
    for node in NODES:
        run.signal(node, signal.SIGTERM)
    assert [run.wait(node) for node in NODES] == [75, 75, 75], run.said(0)
    run.assert_nothing_left(*NODES)
