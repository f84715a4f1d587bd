"""One run over two nodes whose folder is on a disk that does not answer for a while. No lease waits for a disk: nothing
is thought of it, and the same attempt goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import blocked
from tests.support.cluster import LEASE_S, Cluster, NodesRun, cluster
from tests.support.machines import missing

pytestmark = pytest.mark.skipif(bool(missing() or blocked.missing()), reason=missing() or blocked.missing())

SECONDS = [pytest.param(2 * LEASE_S, id="two leases"), pytest.param(30.0, id="half a minute", marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with blocked.disk(tmp_path_factory.mktemp("blocked")) as path:
        yield path


@pytest.fixture(scope="module")
def machines(disk: Path) -> Iterator[Cluster]:
    with cluster(2) as made:
        yield made


@pytest.fixture
def run(machines: Cluster, disk: Path, tmp_path: Path) -> Iterator[NodesRun]:
    """It trains on both nodes; only its folder is on that disk."""
    run = NodesRun(machines, tmp_path, at=disk / tmp_path.name)
    run.start(0, 1)
    run.until_step(5)
    run.until_parked()
    yield run
    machines.mend()


def went_on(run: NodesRun, before: int) -> None:
    """The attempt that ran still does, on both nodes, and nothing was thought of it. All end when they are told to."""
    run.until_step(max(len(each.steps) for each in run.now()) + 10)
    thought = run.events("verdict", "node_left", "stacks_dumped")
    assert [(event["msg"], event.get("reason", event.get("why"))) for event in thought] == []
    assert {each.attempt for each in run.noted()} == {before}
    run.signal(0, signal.SIGTERM)
    assert [run.wait(node) for node in (0, 1)] == [75, 75], run.said(0)
    run.assert_nothing_left(0, 1)


@pytest.mark.parametrize("seconds", SECONDS)
def test_nobody_can_write(run: NodesRun, disk: Path, seconds: float) -> None:
    """Both supervisors and the ranks' files are on it."""
    [attempt] = {each.attempt for each in run.now()}
    with blocked.frozen(disk):
        time.sleep(seconds)
    went_on(run, attempt)


@pytest.mark.long
@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("node", [0, 1], ids=["the leader", "the follower"])
def test_a_node_cannot_read(run: NodesRun, disk: Path, node: int, seconds: float) -> None:
    [attempt] = {each.attempt for each in run.now()}
    with blocked.unreadable(disk, run.nodes.machines[node].inside):
        time.sleep(seconds)
    went_on(run, attempt)
