"""One run over two of three nodes, one of which wakes up after the others have gone on without it: nothing of the old
attempt is read, and the end has the bits of a run that nothing happened to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import STEPS, Cluster, NodesRun, cluster, undisturbed_bits
from tests.support.machines import missing
from tests.support.waiting import until
from trainer.rundir.layout import committed_steps

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    with cluster(3) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(machines: Cluster, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return undisturbed_bits(machines, tmp_path_factory)


def went_on(run: NodesRun, undisturbed: set[str]) -> None:
    """Each attempt went on from what all ranks of the one before had done, or from the step that was being copied, and
    no step was left out."""
    assert run.bits() == undisturbed
    for change in run.changes():
        assert change.lost <= 1 and change.skipped <= 1, change
    assert max(committed_steps(run.dir.checkpoints)) == STEPS


@pytest.mark.long
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "cut off"])
def test_a_follower_wakes_up(nodes: Cluster, tmp_path: Path, undisturbed: set[str], frozen: bool) -> None:
    """The spare node has taken its place. Its ranks end, also those that wake up before anybody who watches them; it
    comes back, and is of use again."""
    run = NodesRun(nodes, tmp_path, steps=STEPS, pause=0.04, held=True)
    run.start(0, 1, 2)
    until(lambda: len(run.events("node_joined")) == 2)
    lost = next(each for each in run.until_step(20) if each.rank == 1)
    node = next(m.number for m in nodes.machines if m.name == lost.host)
    machine = nodes.machines[node]
    if frozen:
        machine.freeze()
    else:
        machine.unplug()
    ranks = run.until_step(10, after=lost.attempt)
    if frozen:
        machine.thaw(lost.pid)
    else:
        machine.plug()

    until(lambda: lost.pid not in machine.pids())
    assert lost.host not in {each.host for each in ranks}
    until(lambda: len(run.events("node_joined")) == 3)
    run.let_end()
    assert [run.wait(each) for each in (0, 1, 2)] == [0, 0, 0], run.said(0)
    run.assert_nothing_left(0, 1, 2)
    assert len(run.changes()) == 1
    went_on(run, undisturbed)


def test_a_leader_wakes_up(nodes: Cluster, tmp_path: Path, undisturbed: set[str]) -> None:
    """Its follower has given up, and the engine has started the run on two other nodes. The leader that wakes up has
    lost the lock, as a file server forgets those of a machine that is silent. It ends, with all that it had, and what
    it has to tell is no part of the run's history."""
    run = NodesRun(nodes, tmp_path, steps=STEPS, pause=0.04, held=True)
    run.start(0)
    until(lambda: run.events("nodes_awaited"))
    run.start(1, more=("--node-wait", "10s"))
    old = next(each for each in run.until_step(20) if each.rank == 0)
    nodes.machines[0].freeze()
    assert run.wait(1) == 75, run.said(1)
    run.dir.lock.unlink()
    run.leads = 1
    run.start(1, 2)
    run.until_step(10, after=old.attempt)
    nodes.machines[0].thaw(old.pid)

    assert run.wait(0) == 108, run.said(0)
    run.let_end()
    run.assert_nothing_left(0)
    assert f"{run.dir.path} is led by pid" in run.said(0) and "on node1 since" in run.said(0)
    assert [run.wait(node) for node in (1, 2)] == [0, 0], run.said(1)
    run.assert_nothing_left(1, 2)
    # One history, of the second leader from its first event on.
    events = run.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    starts = [at for at, event in enumerate(events) if event["msg"] == "run_started"]
    assert len(starts) == 2 and [event["msg"] for event in events].count("run_ended") == 1
    assert "led by" not in run.dir.events.read_text() and "led by" in run.dir.events_of(1).read_text()
    went_on(run, undisturbed)
