"""Where a node finds the leader, and at which address of its own others find it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supervisor.commands import nodes, slurm
from supervisor.commands.status import stragglers, what_next
from supervisor.core.nodes.place import PORT, Place
from supervisor.core.telling.attempt_story import AttemptStory
from supervisor.errors import Refusal
from supervisor.process import addresses
from supervisor.run import status as statuses

NOTHING: dict[str, Any] = dict.fromkeys(("node_rank", "rdzv_id", "master_addr", "master_port", "rdzv_endpoint"))


def test_the_leader_is_the_node_that_has_its_address() -> None:
    """Without a number, by whom the endpoint's address belongs to; with one, by the number."""
    auto = nodes.located(Place(2, 2, None, "127.0.0.1", 7), None, 0.0)
    assert auto.leads and auto.leader == ("127.0.0.1", 7) and auto.address == "127.0.0.1"
    second = nodes.located(Place(2, 2, 1, "127.0.0.1", 7), None, 0.0)
    assert not second.leads and second.leader == ("127.0.0.1", 7) and second.address == "127.0.0.1"


def test_the_address_that_was_asked_for() -> None:
    """--local-addr is stronger than what the routes say."""
    assert nodes.located(Place(2, 2, 0, None, 7), "127.0.0.9", 0.0).leader == ("127.0.0.9", 7)
    assert nodes.located(Place(2, 2, 1, "127.0.0.1", 7), "127.0.0.9", 0.0).address == "127.0.0.9"


def test_a_name_for_the_loopback_is_no_address_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Debian a machine's own name stands for 127.0.1.1."""
    monkeypatch.setattr(addresses, "numbers", lambda host: ["127.0.1.1"])
    monkeypatch.setattr(addresses, "outward", lambda: "10.0.0.1")
    assert nodes.located(Place(2, 2, 0, "node1", 7), None, 0.0).address == "10.0.0.1"
    monkeypatch.setattr(addresses, "outward", lambda: None)
    with pytest.raises(Refusal, match="--local-addr"):
        nodes.located(Place(2, 2, 0, "node1", 7), None, 0.0)


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for as long as a pod may take to get one; then Slurm is asked, and then it is a refusal."""
    monkeypatch.setattr(slurm, "addresses_of", lambda node: ["127.0.0.1"] if node == "n1.invalid" else [])
    assert nodes.located(Place(2, 2, 1, "n1.invalid", 7), None, 0.0).leader == ("127.0.0.1", 7)
    with pytest.raises(Refusal, match=r"n2\.invalid leads"):
        nodes.located(Place(2, 2, 1, "n2.invalid", 7), None, 0.0)
    now, asked = [0.0], []
    monkeypatch.setattr(addresses, "numbers", lambda host: asked.append(host) or (["10.0.0.1"] if now[0] > 1 else []))
    assert addresses.waited_for("pod", 5.0, lambda: now[0], lambda s: now.__setitem__(0, now[0] + s)) == ["10.0.0.1"]
    assert 1.0 < now[0] < 2.0 and len(asked) > 3
    monkeypatch.setattr(addresses, "numbers", lambda host: [])
    assert addresses.waited_for("pod", 5.0, lambda: now[0], lambda s: now.__setitem__(0, now[0] + s)) == []


def test_addresses_of_this_machine() -> None:
    """Ours can be told from those of others, without a packet."""
    assert addresses.is_ours("127.0.0.1") and not addresses.is_ours("192.0.2.1")
    assert addresses.towards("127.0.0.1") == "127.0.0.1"
    assert addresses.numbers("127.0.0.1") == ["127.0.0.1"] and addresses.numbers("no.such.host.invalid") == []
    assert (found := addresses.outward()) is None or (addresses.is_ours(found) and not addresses.is_loopback(found))


def test_options_and_environment_together() -> None:
    """torchrun's spellings of the endpoint are one more way to say it; what is no value of a Spec is taken out."""
    given = {**NOTHING, "nnodes": "1:2", "master_addr": "a", "node_rank": 1, "rdzv_endpoint": None}
    assert nodes.ignored(given) == ["--node-rank", "--master-addr"]
    assert nodes.placed(given, {}) == Place(1, 2, 1, "a", PORT, "--nnodes")
    assert given == {"nnodes": "1:2", "rdzv_endpoint": None}
    given = {**NOTHING, "nnodes": "", "rdzv_endpoint": "b:5"}
    hand = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "a"}
    assert nodes.placed(given, hand) == Place(2, 2, 1, "b", 5, "NNODES")
    with pytest.raises(Refusal, match="NODE_RANK"):
        nodes.placed({**NOTHING, "nnodes": ""}, {**hand, "NODE_RANK": "x"})


def test_the_folder_of_all_nodes() -> None:
    """It is named after the engine's job; without one it must be given."""
    assert nodes.folder(Place(2, 2, 0, "a", 7, "srun", "7.0"), "train") == Path("runs/train-7.0")
    with pytest.raises(Refusal, match="--run-dir"):
        nodes.folder(Place(2, 2, 0, "a", 7, "--nnodes"), "train")


@pytest.mark.parametrize(
    ("slow", "lines"),
    [
        ([2], ["rank 2 takes long, on node 1 (b)"]),
        ([2, 3], ["node 1 on b: all its ranks; rank 2 takes long"]),
        ([0, 2, 3], ["node 1 on b: all its ranks; rank 2 takes long", "rank 0 takes long, on node 0 (a)"]),
    ],
)
def test_slow_ranks_by_node(slow: list[int], lines: list[str]) -> None:
    """`status` names the node of a slow rank, and the node alone if all its ranks are slow."""
    attempt = AttemptStory(
        0, 0.0, nodes={0: "a", 1: "b"}, stragglers={rank: f"rank {rank} takes long" for rank in slow}
    )
    nodes = statuses.nodes_of(attempt, 2)
    now = {"nodes": nodes, "stragglers": statuses.stragglers_of(attempt, 2)}

    assert [(row["rank"], row["node"]) for row in now["stragglers"]] == [(rank, rank // 2) for rank in slow]
    assert list(stragglers(now)) == lines


@pytest.mark.parametrize("state", ["lost", "preempted", "failed", "stopped", "stuck"])
def test_how_a_run_is_taken_up_again(state: str) -> None:
    """One node alone cannot do that for several: `resume` would be refused."""
    assert "its launch command again, on each node" in what_next({"state": state}, "gpt", several=True)
    assert "supervise resume gpt" in what_next({"state": state}, "gpt", several=False)
    assert "resume" not in what_next({"state": state}, "gpt", several=True)
