"""Sharded state on more than two nodes: none has it whole, each keeps the files of the node before it."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.jobs import same
from tests.support.thread_nodes import Cluster, undisturbed
from tests.support.training import Here
from trainer.checkpoint.memory.board import Board
from trainer.checkpoint.memory.segment import Buffer, Segment
from trainer.checkpoint.memory.snapshots import newest_part, newest_snapshot
from trainer.checkpoint.nodes import twins
from trainer.checkpoint.nodes.holdings import Holdings, Whole, _counted
from trainer.rundir.layout import committed_steps
from trainer.rundir.machine.shm import board_path


@pytest.fixture
def cluster(here: Here, tmp_path: Path) -> Cluster:
    return Cluster(here, tmp_path / "machines")


@pytest.mark.parametrize("lost", ["a", "b", "c"])
def test_sharded_state_in_a_ring(cluster: Cluster, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On three nodes each has the files of its ranks and of those of the node before it. Any one node is lost, and its
    machine replaced, then another one; then it goes on with fewer nodes, and with more: no step is lost."""
    monkeypatch.setattr(twins, "_CHUNK", 1000)
    whole = undisturbed(cluster, 10)
    begun = 0
    for on, until, gone in (("abbccc", 4, lost), ("abbccc", 6, "a"), ("bca", 7, "c"), ("ba", 8, ""), ("abcde", 10, "")):
        results = cluster.train(on, until, None, sharded=True)
        assert [start for start, _, _ in results] == [begun] * len(on)
        begun = until
        for machine in gone:
            cluster.lose(machine)
    assert same(torch.cat([weight for _, weight, _ in results]), whole)
    assert [newest_snapshot(cluster.segment(machine)) for machine in "abcde"] == [None] * 5
    assert [newest_part(cluster.segment(machine)) for machine in "abcde"] == [10] * 5
    # What was being copied when it ended is there in part, and not all that the node keeps.
    Board(board_path(cluster.segment("a"), 4)).invalidate(_slot_of(cluster.segment("a"), 4, 10))
    assert [newest_part(cluster.segment("a"), some) for some in (False, True)] == [9, 10]
    kept = [{path.name[:5] for path in cluster.segment(machine).iterdir()} for machine in "abcde"]
    assert kept == [{f"rank{rank}", f"rank{(rank - 1) % 5}"} for rank in range(5)]


def _slot_of(segment: Path, rank: int, step: int) -> str:
    return next(slot for slot, record in Board(board_path(segment, rank)).records().items() if record.step == step)


def test_a_ring_saves_to_disk_too(cluster: Cluster) -> None:
    """No node could make a checkpoint of its snapshot, so the ranks do, at the steps that are due."""
    cluster.train("abc", 5, None, sharded=True, every=2)
    assert committed_steps(cluster.here.checkpoints) == [2, 4]
    cluster.lose("a", "b")
    assert [start for start, _, _ in cluster.train("abc", 5, None, sharded=True)] == [4] * 3


def test_whichever_node_goes_whenever(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts take their time, now and then one finds no buffer: at any moment the nodes that are left have a snapshot
    that is whole together, and none older than one that was safe before, whichever went."""
    numbers, keep, safe = random.Random(4), twins.Twins._keep, [0]

    def slowly(self: twins.Twins, rank: int, segment: Segment) -> float:
        time.sleep(numbers.choice((0.0, 0.0, 0.02)))
        return keep(self, rank, segment)

    def without(self: twins.Twins, *args: Any) -> Buffer | None:
        return None if numbers.random() < 0.2 else find(self, *args)

    def look(step: int) -> None:
        found = []
        for gone in "abc":
            left = [_counted(cluster.segment(machine)) for machine in "abc" if machine != gone]
            held = Holdings(tuple({Whole(*key): frozenset(files) for key, files in each} for each in left))
            found.append(newest.step if (newest := held.newest()) else 0)
        assert min(found) >= safe[-1], (step, found, safe)
        safe.append(min(found))

    find = twins.Twins._buffer
    monkeypatch.setattr(twins.Twins, "_keep", slowly)
    monkeypatch.setattr(twins.Twins, "_buffer", without)
    cluster.train("abc", 120, None, sharded=True, look=look)
    assert len(set(safe)) > 5
