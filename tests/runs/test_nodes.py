"""One run over several nodes, which lose ranks, processes, power, cables and supervisors."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.support.cluster import STEPS, Cluster, NodesRun, cluster, undisturbed_bits
from tests.support.machines import missing
from tests.support.supervised import ROOT, SUPERVISE
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def machines() -> Iterator[Cluster]:
    with cluster(2, alias="gpt-node-0-{}.gpt") as made:
        yield made


def went_on(run: NodesRun, *, lost: int = 1) -> None:
    """Each change of attempt was one: the old one's ranks were still before the new one's first step, and nothing that
    all ranks had done was lost but what was being copied. A step may be kept before it is noted."""
    for change in run.changes():
        assert change.still > 0 and change.lost <= lost and change.skipped <= 1, change


@pytest.fixture(scope="module")
def undisturbed(machines: Cluster, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return undisturbed_bits(machines, tmp_path_factory)


def test_a_rank_of_another_node_is_killed(nodes: Cluster, tmp_path: Path, undisturbed: set[str]) -> None:
    """The group that waits over both nodes goes on, and ends with the bits of a run that nothing happened to."""
    lease = 60.0
    run = NodesRun(nodes, tmp_path, steps=STEPS, pause=0.04, held=True, lease=lease)
    run.start(0, 1)
    run.until_step(5)
    run.until_parked()
    victim = next(noted for noted in run.now() if noted.rank == 1)
    assert nodes.machines[1].send(victim.pid, signal.SIGKILL)
    run.let_end()
    assert [run.wait(node) for node in (0, 1)] == [0, 0], run.said(0)
    run.assert_nothing_left(0, 1)

    assert [(event["cause"], event["rank"]) for event in run.events("verdict")] == [("killed", 1), ("finished", None)]
    # It is seen at once: no lease was waited for.
    assert 0 <= run.events("verdict")[0]["detect_s"] < lease / 2
    assert len(run.changes()) == 1
    went_on(run)
    assert run.bits() == undisturbed


def test_a_node_without_power(nodes: Cluster, tmp_path: Path) -> None:
    """With 1:2 nodes the other one goes on alone, from the newest step, as soon as the lease is over."""
    run = NodesRun(nodes, tmp_path, "1:2")
    run.start(0, 1)
    run.until_step(10)
    nodes.power_off(1)
    run.until_step(5, world=1, after=0)
    went_on(run)
    [lost] = [event for event in run.events("verdict") if event["cause"] == "node_lost"]
    assert "node1" in lost["reason"] or "node 1" in lost["reason"]
    run.signal(0, signal.SIGTERM)
    assert run.wait(0) == 75
    run.assert_nothing_left(0)


def test_a_cable_is_out_and_in_again(nodes: Cluster, tmp_path: Path) -> None:
    """The node that is cut off ends its own ranks before the other one goes on; it comes back, and is used again at the
    next restart."""
    run = NodesRun(nodes, tmp_path, "1:2")
    run.start(0, 1)
    run.until_step(10)
    nodes.machines[1].unplug()
    run.until_step(5, world=1, after=0)
    went_on(run)
    joined = len(run.events("node_joined"))
    nodes.machines[1].plug()
    until(lambda: len(run.events("node_joined")) > joined)
    [victim] = run.now()
    assert nodes.machines[0].send(victim.pid, signal.SIGKILL)
    run.until_step(5, world=2, after=victim.attempt)
    went_on(run)
    run.signal(1, signal.SIGTERM)
    assert [run.wait(node) for node in (0, 1)] == [75, 75]
    run.assert_nothing_left(0, 1)


@pytest.mark.long
@pytest.mark.parametrize("what", ["sent", "received"])
def test_one_direction_is_lost(nodes: Cluster, tmp_path: Path, what: Literal["sent", "received"]) -> None:
    """Half a partition is one."""
    run = NodesRun(nodes, tmp_path, "1:2")
    run.start(0, 1)
    run.until_step(10)
    nodes.machines[1].drop(what)
    run.until_step(5, world=1, after=0)
    went_on(run)
    nodes.machines[1].heal()
    until(lambda: len(run.events("node_joined")) > 1)
    run.signal(0, signal.SIGTERM)
    assert [run.wait(node) for node in (0, 1)] == [75, 75]
    run.assert_nothing_left(0, 1)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_supervisor_is_gone(nodes: Cluster, tmp_path: Path, undisturbed: set[str], number: signal.Signals) -> None:
    """Its ranks do not train on without it: its warden ends them. The engine starts it again, or it wakes up, and all
    go on, to the same bits."""
    run = NodesRun(nodes, tmp_path, "2", steps=STEPS, pause=0.04, held=True)
    run.start(0, 1)
    ranks = run.until_step(5)
    run.signal(1, number)
    until(lambda: all(rank.pid not in nodes.machines[rank.rank].pids() for rank in ranks))
    run.let_end()
    if number == signal.SIGKILL:
        run.wait(1)
        run.start(1)
    else:
        run.signal(1, signal.SIGCONT)
    assert [run.wait(node) for node in (0, 1)] == [0, 0], run.said(0)
    run.assert_nothing_left(0, 1)
    went_on(run)
    assert run.bits() == undisturbed


@pytest.mark.long
def test_all_processes_of_a_node_die(nodes: Cluster, tmp_path: Path, undisturbed: set[str]) -> None:
    """Its kernel lives, and says so at once. With 2 nodes the run waits for it, and ends with the same bits."""
    run = NodesRun(nodes, tmp_path, "2", steps=STEPS, pause=0.04, held=True)
    run.start(0, 1)
    run.until_step(5)
    nodes.kill_all(1)
    run.let_end()
    run.start(1)
    assert [run.wait(node) for node in (0, 1)] == [0, 0], run.said(0)
    run.assert_nothing_left(0, 1)
    went_on(run)
    assert run.bits() == undisturbed


@pytest.mark.long
def test_the_leader_is_lost(nodes: Cluster, tmp_path: Path, undisturbed: set[str]) -> None:
    """The others end their ranks, save what they have, wait, and leave with 75. The next start goes on, to the same
    bits."""
    run = NodesRun(nodes, tmp_path, "2", steps=STEPS, pause=0.04, held=True)
    run.start(0, 1, more=("--node-wait", "10s"))
    run.until_step(30)
    nodes.power_off(0)
    assert run.wait(1) == 75, run.said(1)
    run.assert_nothing_left(1)
    nodes.machines[0].boot()
    run.let_end()
    run.start(0, 1)
    assert [run.wait(node) for node in (0, 1)] == [0, 0], run.said(0)
    run.assert_nothing_left(0, 1)
    went_on(run)
    assert run.bits() == undisturbed


@pytest.mark.long
def test_a_leaders_supervisor_is_killed(nodes: Cluster, tmp_path: Path, undisturbed: set[str]) -> None:
    """Nothing is adopted: the ranks end, the next leader starts them anew, from memory."""
    run = NodesRun(nodes, tmp_path, "2", steps=STEPS, pause=0.04, held=True)
    run.start(0, 1)
    ranks = run.until_step(5)
    run.signal(0, signal.SIGKILL)
    run.wait(0)
    until(lambda: all(rank.pid not in nodes.machines[rank.rank].pids() for rank in ranks))
    run.let_end()
    run.start(0)
    assert [run.wait(node) for node in (0, 1)] == [0, 0], run.said(0) + run.said(1)
    run.assert_nothing_left(0, 1)
    went_on(run)
    assert run.bits() == undisturbed


@pytest.mark.long
def test_a_node_that_never_comes(nodes: Cluster, tmp_path: Path) -> None:
    """The others wait as long as they were told to, and leave with 75, so that the engine starts all of them again."""
    run = NodesRun(nodes, tmp_path, "2")
    run.start(0, more=("--node-wait", "2s"))
    assert run.wait(0) == 75
    run.assert_nothing_left(0)
    # One node alone is refused.
    assert "go on    its launch command again, on each node" in run.said(0)
    assert "supervise resume" not in run.said(0)


@pytest.mark.long
def test_as_a_jobset_starts_it(nodes: Cluster, tmp_path: Path) -> None:
    """The command and the variables of docs/kubernetes.md, with the names that pods have. One pod is evicted: all save.
    They are started again, and go on."""
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    [written] = re.findall(r"command: (\[.*\])", page)
    pod = {
        "JOBSET_NAME": "gpt",
        "REPLICATED_JOB_NAME": "node",
        "JOBSET_RESTART_ATTEMPT": "0",
        "SUPERVISE_TOKEN": "a" * 64,
    }
    assert re.findall(r"- name: (\w+)\n +valueFrom", page) == list(pod)
    run = NodesRun(nodes, tmp_path)
    words = {"8": "1", "/shared/gpt": str(run.dir.path), "supervise": SUPERVISE}
    command = [words.get(word, word) for word in json.loads(written)[:-1]] + run.script

    for after in (-1, 0):
        for node in (1, 0):
            run.start_as(node, command, JOB_COMPLETION_INDEX=str(node), **pod)
        run.until_step(10, after=after)
        run.signal(1, signal.SIGTERM)
        assert [run.wait(node) for node in (0, 1)] == [75, 75], run.said(0)
        run.assert_nothing_left(0, 1)
    [change] = run.changes()
    assert change.lost == 0 and change.skipped <= 1
