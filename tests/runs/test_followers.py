"""Two supervisors, one that leads and one that follows, on two addresses of one machine: one run."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from supervisor.live.mirror import all_beats
from supervisor.process.proctree import marked
from tests.support.followed import OTHER, Two
from tests.support.jobs import TINY, final_state, same
from tests.support.limits import limit, lowest_free
from tests.support.scripts import STEPPING
from tests.support.undisturbed import undisturbed
from tests.support.waiting import until

STEPS = 60
JOB = [*TINY, "--steps", str(STEPS), "--checkpoint-every", "10"]
HEARS_LATE = """
import os, sys
from _supervisor.group.fork_server import ForkServer
take, listen, held = ForkServer._take, ForkServer.listen, []

def hold(self, answer):
    if "group" in answer:
        held.append(answer)
    else:
        take(self, answer)

def hear(self):
    listen(self)
    while held and (held[0]["group"].endswith("/0001") or os.path.exists("go")):
        take(self, held.pop(0))

ForkServer._take, ForkServer.listen = hold, hear
from _supervisor.commands.cli import run
sys.exit(run(sys.argv[1:]))
"""
"""supervise, which learns of the launcher of each group but the first one only when there is a file `go`."""


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    made = Two(tmp_path)
    yield made
    made.kill()


def test_killed_on_both_nodes(two: Two, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A rank of each node is killed; both times the ranks of both nodes begin again, and the end has the bits of an
    undisturbed run on one node. One console, one history; every rank's log."""
    faults = ("--inject", "kill:rank=1@step=15", "--inject", "kill:rank=0@step=35")
    two.lead(*faults, "--", *JOB)
    two.follow("--", *JOB)

    assert two.ended() == (0, 0)
    assert sorted(two.verdicts()) == [("finished", None), ("killed", 0), ("killed", 1)]
    assert [event["nodes"].keys() for event in two.events("attempt_started")] == [{"0": "", "1": ""}.keys()] * 3
    assert [event["nproc"] for event in two.events("attempt_started")] == [2, 2, 2]
    reference = undisturbed(tmp_path_factory, "followers", STEPS, ["--", *JOB], lambda run: None)
    assert same(final_state(two.dir.path, STEPS), reference)
    for number in range(3):
        folder = two.dir.attempt(number)
        assert all(path.exists() for path in (folder.rank_log(0), folder.rank_log(1), folder.launcher_log))
        assert (folder.path / "launcher.node1.log").exists()


def test_a_group_that_waits_on_both_nodes(two: Two) -> None:
    """The next group waits on both nodes, and is the next attempt; a signal that reaches only node 1 stops all."""
    two.lead(two.script(STEPPING), "100000", "0.05")
    two.follow("script.py", "100000", "0.05")
    standby = two.until_standby()
    two.until_stepped()
    shown = json.loads(two.cli("status", "run", "--json").stdout)
    two.cli("inject", "run", "kill:rank=1")
    two.until_event("first_step", 2)
    assert two.other is not None
    os.kill(two.other.pid, signal.SIGTERM)

    assert two.ended() == (75, 75)
    assert two.events("attempt_started")[1]["launcher_pid"] == standby["launcher_pid"]
    assert two.events("stop_requested")[-1]["by"] == "preemption"
    assert [(node["node"], node["ranks"]) for node in shown["nodes"]] == [(0, [0]), (1, [1])]
    assert [(worker["rank"], worker["step"] > 0) for worker in shown["workers"]] == [(0, True), (1, True)]


def test_a_group_that_waits_in_restore_on_both_nodes(two: Two) -> None:
    """Where the program asks for it, the ranks of all nodes build their model together, before the release."""
    endless = [*TINY, "--steps", "100000", "--checkpoint-every", "1000"]
    two.lead("--", *endless)
    two.follow("--", *endless)
    until(lambda: [event for event in two.events("standby_ready") if event["at"] == "restore"])
    standby = two.events("standby_ready")[-1]
    two.cli("inject", "run", "kill:rank=1")
    two.until_event("first_step", 2)
    two.cli("stop", "run", "--now")

    assert two.ended() == (103, 103)
    assert two.events("attempt_started")[1]["launcher_pid"] == standby["launcher_pid"]
    assert two.events("group_ready")[1]["pids"][0] in standby["pids"]


def test_nodes_that_do_not_fit(two: Two) -> None:
    """Another number of ranks, another script or another folder: the node is refused in a sentence with 2, and a
    leader that has waited in vain ends with 75."""
    two.lead(two.script(STEPPING), "5", "0")
    two.until_event("nodes_awaited")
    (two.folder / "other.py").write_text(STEPPING)
    shown = []
    for arguments, nproc in ((("script.py", "5", "0"), 2), (("other.py", "5", "0"), 1)):
        two.follow(*arguments, nproc=nproc)
        assert two.other is not None and two.other.wait(60) == 2
        shown = two.said().splitlines()
    refused = [event["why"] for event in two.events("node_refused")]

    assert refused[0] == "--nproc is 2 there and 1 here: give the same on all nodes"
    assert refused[1] == "not the same on both nodes: the script is other.py there and script.py here"
    assert [line.removeprefix("supervise: the leader refuses this node: ") for line in shown] == refused
    two.cli("stop", "run", "--now")
    assert two.ended() == (103, 2)

    two.lead("--node-wait", "1s", "script.py", "5", "0")
    assert two.ended() == (75, 2)
    assert "1 of 2 nodes is there" in two.events("run_ended")[-1]["reason"]


def test_both_in_the_background(two: Two) -> None:
    """Each launch returns when its supervisor is at work, or with what that said; the run is stopped from anywhere."""
    two.lead("-d", two.script(STEPPING), "100000", "0.05")
    assert two.process is not None and two.process.wait(60) == 0
    two.follow("-d", "script.py", "100000", "0.05", nproc=2)
    assert two.other is not None and two.other.wait(60) == 2
    assert "the leader refuses this node: --nproc is 2 there and 1 here" in two.said()
    two.follow("-d", "script.py", "100000", "0.05")
    assert two.other.wait(60) == 0
    assert "this node follows" in two.said()
    two.until_event("first_step")
    assert two.cli("stop", "run", "--now").returncode == 0
    [ended] = until(lambda: two.events("run_ended"))

    assert ended["exit_code"] == 103
    until(lambda: marked(two.mark()) == marked(f"{two.mark()}-n1") == [])
    two.assert_nothing_left()


def test_where_the_ranks_of_all_nodes_stand(two: Two) -> None:
    """`stacks` asks the supervisors of both nodes, once or for some time. If a rank stands still, the stacks of both
    nodes' ranks are kept and told."""
    two.lead(two.script(STEPPING), "100000", "0.05")
    two.follow("script.py", "100000", "0.05")
    two.until_stepped()

    def places() -> list[tuple[int, bool]]:
        """The ranks that were looked at, and whether they were seen in the script."""
        found = json.loads(two.cli("stacks", "run", "--json").stdout)["stacks"]
        return [(stack["rank"], "script.py" in stack["place"]) for stack in found if stack["child"] is None]

    # py-spy stops nobody, so a look may come between two frames and see none of the script.
    until(lambda: places() == [(0, True), (1, True)])
    spend = json.loads(two.cli("stacks", "run", "--top", "1s", "--json").stdout)
    two.cli("inject", "run", "stop:rank=1")
    dumped = two.until_event("stacks_dumped")
    text = two.dir.attempt(0).groups.read_text()
    two.cli("stop", "run", "--now")

    assert two.ended() == (103, 103)
    assert {rank for rank, places in spend["samples"].items() if places} == {"0", "1"}
    assert sorted(dumped["ranks"] + dumped["missing"]) == [0, 1]
    assert "rank 0" in text and "rank 1" in text
    assert not list(two.dir.attempt(0).stacks.glob("look.*")) and not two.dir.look.exists()


@pytest.mark.parametrize("address", [OTHER, "127.0.0.3"])
def test_a_second_supervisor_with_the_same_number(two: Two, tmp_path: Path, address: str) -> None:
    """It is refused while the first one lives, at its address or another one, and the run goes on undisturbed. Once the
    first one is dead, it takes the place."""
    two.lead(two.script(STEPPING), "100000", "0.05")
    two.follow("script.py", "100000", "0.05")
    two.until_event("first_step")
    first = two.other
    # In a container of its own it would not see the folder of the first one.
    second = ("--local-dir", str(tmp_path / "local"), "script.py", "100000", "0.05")
    two.follow(*second, address=address)
    assert two.other is not None and two.other.wait(60) == 2
    assert f"node 1 is there already, at {OTHER} (" in two.said()
    assert len(two.events("node_joined")) == 1 and two.events("node_left") == []
    assert len(two.events("attempt_started")) == 1

    assert first is not None
    first.kill()
    first.wait()
    two.follow(*second, address=address)
    two.until_event("first_step", 2)
    two.cli("stop", "run", "--now")

    assert two.ended() == (103, 103)


def marked_ranks(two: Two) -> set[int]:
    """The processes of the run on node 1 that are no fork server: those of attempts."""
    return {process.pid for process in marked(f"{two.mark()}-n1")}


def test_the_supervisor_of_a_node_dies(two: Two) -> None:
    """Its ranks die with it, at once; the run goes on with the other node, and with both when that one is back."""
    two.nnodes = "1:2"
    two.lead(two.script(STEPPING), "100000", "0.05")
    two.follow("script.py", "100000", "0.05")
    two.until_stepped()
    rank = two.until_event("group_ready")["pids"][1]
    assert two.other is not None
    two.other.kill()
    two.other.wait()
    alone = two.until_event("attempt_started", 2)
    assert not Path(f"/proc/{rank}/exe").exists()
    verdict = two.events("verdict")[0]

    assert (verdict["cause"], verdict["node"]) == ("node_lost", 1)
    assert list(alone["nodes"]) == ["0"]
    # What belongs to no attempt, the fork server, dies in the same moment, and nobody waits for it.
    until(lambda: marked_ranks(two) == set())

    two.until_event("first_step", 2)
    two.follow("script.py", "100000", "0.05")
    until(lambda: len(two.events("node_joined")) == 2)
    two.cli("inject", "run", "kill:rank=0")
    two.until_event("first_step", 3)
    both = two.events("attempt_started")[2]
    two.cli("stop", "run", "--now")

    assert list(both["nodes"]) == ["0", "1"]
    assert two.ended() == (103, 103)


def test_the_other_node_is_known_first(two: Two) -> None:
    """Its ranks may have made steps before this node knows its own launcher. No attempt has news before its begin."""
    two.lead(two.script(STEPPING), "100000", "0.05", program=[sys.executable, "-c", HEARS_LATE])
    two.follow("script.py", "100000", "0.05")
    two.until_stepped()
    two.until_event("first_step")
    two.cli("inject", "run", "kill:rank=1")
    until(lambda: [beat.rank for beat in all_beats(two.dir.attempt(1)) if beat.step > 20] == [0, 1])
    (two.folder / "go").touch()
    two.until_event("first_step", 2)
    of_second = [event["msg"] for event in two.events() if event["attempt"] == 1]
    two.cli("stop", "run", "--now")

    assert of_second.index("attempt_started") < of_second.index("group_ready")
    assert of_second.index("attempt_started") < of_second.index("first_step")
    assert two.ended() == (103, 103)


def test_a_node_that_runs_out_of_descriptors(two: Two) -> None:
    """Its rank dies while the supervisor there has none left: it lives, says so, and recovers when it can."""
    two.lead(two.script(STEPPING), "100000", "0.05")
    two.follow("script.py", "100000", "0.05")
    two.until_standby()
    two.until_stepped()
    assert two.other is not None
    # With the rank some come free.
    before = limit(two.other.pid, resource.RLIMIT_NOFILE, lowest_free(two.other.pid) - 8)
    os.kill(two.events("group_ready")[0]["pids"][1], signal.SIGKILL)
    until(lambda: "cannot look after its ranks" in two.warnings())
    assert two.other.poll() is None
    resource.prlimit(two.other.pid, resource.RLIMIT_NOFILE, before)
    two.until_stepped(1)
    two.cli("stop", "run", "--now")

    assert two.ended() == (103, 103) and not two.events("node_left")


@pytest.mark.long
@pytest.mark.parametrize("stopped", [False, True])
def test_the_leader_is_lost(two: Two, stopped: bool) -> None:
    """Node 1 ends its ranks within the lease, whether the leader's supervisor is dead or stopped; so do those of the
    leader's node. The leader that comes back takes both nodes up again."""
    two.lease = "1s"
    two.lead(two.script(STEPPING), "100000", "0.05")
    two.follow("script.py", "100000", "0.05")
    two.until_stepped()
    ranks = two.until_event("group_ready")["pids"]
    assert two.process is not None
    os.kill(two.process.pid, signal.SIGSTOP if stopped else signal.SIGKILL)
    until(lambda: not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in ranks), 3.0)
    if stopped:
        os.kill(two.process.pid, signal.SIGCONT)
    else:
        two.process.wait()
        two.lead("script.py", "100000", "0.05")
    two.until_event("first_step", 2)
    two.cli("stop", "run", "--now")

    assert two.ended() == (103, 103)
    assert len(two.events("attempt_started")) == 2


@pytest.mark.long
def test_the_leader_does_not_come_back(two: Two) -> None:
    """Node 1 waits, keeps its state, and ends with 75 for the engine."""
    two.lease = "1s"
    two.lead(two.script(STEPPING), "100000", "0.05")
    two.follow("--node-wait", "3s", "script.py", "100000", "0.05")
    two.until_event("first_step")
    two.kill_supervisor()

    assert two.other is not None and two.other.wait(60) == 75
    assert marked_ranks(two) == set()
    assert "the leader is lost" in two.said()
