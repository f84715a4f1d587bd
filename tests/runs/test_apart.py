"""Nodes that the leader reaches, and that do not reach each other."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, NodesRun, cluster
from tests.support.machines import missing
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    with cluster(3) as made:
        yield made


LARGE = pytest.param(True, marks=pytest.mark.skipif(shutil.which("nft") is None, reason="nftables is not installed"))


@pytest.mark.parametrize("large", [False, LARGE])
def test_a_pair_of_followers_is_named(nodes: Cluster, tmp_path: Path, large: bool) -> None:
    """Nothing, or no large packet, gets from node 1 to node 2: no attempt hangs at its rendezvous; the run ends with 2
    on all nodes, with the pair, the address and what happened."""
    one, two = nodes.machines[1:]
    (one.drop_large_to if large else one.drop_to)(two)
    run = NodesRun(nodes, tmp_path, "3")
    run.start(0, 1, 2, more=("--node-wait", "20s", "--lease", "20s"))
    codes = [run.wait(node) for node in range(3)]
    run.assert_nothing_left(0, 1, 2)

    [ended] = run.events("run_ended")
    assert codes == [2, 2, 2], run.said(0)
    assert f"node 1 (node1) cannot reach node 2 (node2) at {two.address}:" in ended["reason"]
    assert ("large packets are lost" if large else "nobody answers") in ended["reason"]
    assert "node 0" not in ended["reason"] and ended["reason"].splitlines()[0] in run.said(0)
    assert {(e["node"], e["to"]) for e in run.events("nodes_apart")} >= {(1, 2)}
    assert run.events("attempt_started") == []


@pytest.mark.long
def test_without_one_of_the_pair(nodes: Cluster, tmp_path: Path) -> None:
    """With 2:3 nodes the run begins without one of them, and takes it in at the next restart once they are mended."""
    one, two = nodes.machines[1:]
    one.drop_to(two)
    run = NodesRun(nodes, tmp_path, "2:3")
    run.start(0, 1, 2, more=("--node-wait", "15s"))
    ranks = run.until_step(5, world=2)
    assert {rank.host for rank in ranks} == {"node0", "node1"}
    one.heal()
    until(lambda: [event for event in run.events("nodes_apart") if event.get("over")])
    assert nodes.machines[0].send(next(rank.pid for rank in ranks if rank.host == "node0"), signal.SIGKILL)
    run.until_step(5, world=3, after=0)
    run.signal(0, signal.SIGTERM)
    assert [run.wait(node) for node in range(3)] == [75, 75, 75]
    run.assert_nothing_left(0, 1, 2)


SETTING = "GLOO_SOCKET_IFNAME=docker0"


@pytest.mark.parametrize(
    ("second", "why"),
    [
        # The address that every container engine gives its bridge.
        ("172.17.0.1", "this node has that address itself"),
        # What is sent there is lost: torch would wait for half an hour.
        pytest.param("172.18.0.1", "nobody answers within 2 s", marks=pytest.mark.long),
    ],
)
def test_an_interface_that_leads_nowhere(nodes: Cluster, tmp_path: Path, second: str, why: str) -> None:
    """The ranks shall use a bridge that each node has for itself. Each node calls the others there, too: no attempt
    begins, and the run ends with 2 on all nodes, with the pair, both addresses of the node and what chose the wrong
    one."""
    one, two = nodes.machines[:2]
    one.bridge("docker0", "172.17.0.1")
    two.bridge("docker0", second)
    run = NodesRun(nodes, tmp_path, "2")
    # A node that stands still for a moment is not lost: then the reason would be another one.
    run.start(0, 1, more=("--node-wait", "20s", "--lease", "20s"), GLOO_SOCKET_IFNAME="docker0")
    codes = [run.wait(node) for node in range(2)]
    run.assert_nothing_left(0, 1)
    # The bridges go with the power.
    for node in range(2):
        nodes.power_off(node)

    [ended] = run.events("run_ended")
    assert codes == [2, 2], run.said(0)
    assert "node 1 (node1) cannot reach node 0 (node0) at 172.17.0.1:" in ended["reason"]
    assert (
        f"{why} ({SETTING} has chosen that address for the ranks of node 0, whose own is {one.address}: set"
        in (ended["reason"])
    )
    assert {each["setting"] for each in run.events("nodes_apart")} == {SETTING}
    assert run.events("attempt_started") == []


def test_an_interface_that_is_not_there(nodes: Cluster, tmp_path: Path) -> None:
    """It is named, with the node that has none of that name. The others are not in doubt."""
    run = NodesRun(nodes, tmp_path, "2")
    run.start(0, more=("--lease", "20s"))
    run.start(1, more=("--lease", "20s"), GLOO_SOCKET_IFNAME="eth7")
    codes = [run.wait(node) for node in range(2)]
    run.assert_nothing_left(0, 1)

    assert codes == [104, 104], run.said(0)
    said = "the ranks of node 1 cannot be called as GLOO_SOCKET_IFNAME=eth7 says: no interface here"
    assert [event["node"] for event in run.events("warning") if said in event["text"]] == [1]
    assert run.events("nodes_apart") == []
