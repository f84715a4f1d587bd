"""The state of a training over several nodes: saved, found again, and never lost in silence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.jobs import on_ranks
from tests.support.training import Notes
from tests.support.two_nodes import nodes
from trainer.checkpoint import Checkpointer, CheckpointError, NoUsableCheckpoint
from trainer.checkpoint.disk.store import verify
from trainer.checkpoint.memory.snapshots import newest_snapshot
from trainer.rundir.layout import committed_steps, step_name


@pytest.mark.long
def test_plain_torchrun_over_two_nodes(tmp_path: Path) -> None:
    """Without a supervisor: a checkpoint at each fourth step, by the ranks of both nodes, in the folder that they
    share; and the next start goes on from it with the same bits."""
    with nodes(tmp_path, "state-plain") as plain:
        assert [end.code for end in plain.train(7, torchrun=True)] == [0, 0]
        whole = plain.lines("-")
        assert committed_steps(plain.checkpoints) == [4, 7]
        assert verify(plain.checkpoints / step_name(4)).world_size == 2

        shutil.rmtree(plain.checkpoints / step_name(7))
        assert [end.code for end in plain.train(7, torchrun=True)] == [0, 0]
        assert plain.began("-") == [4, 4]
        assert plain.lines("-") == [{step: told for step, told in rank.items() if step > 4} for rank in whole]


def test_a_folder_that_is_not_shared(tmp_path: Path, notes: Notes) -> None:
    """Each node has a folder of its own: a save fails and says why; no checkpoint that one node has is moved away
    because the other does not see it."""

    def body(ranks: Any, folder: Any, step: int) -> Any:
        ckpt = Checkpointer(model=torch.nn.Linear(3, 3), directory=folder(ranks.rank), every=1)
        ckpt._ranks = ranks
        began = ckpt.restore()
        ckpt.step(step)
        try:
            ckpt.close()
        except CheckpointError as error:
            return str(error)
        return began

    apart = lambda rank: tmp_path / f"node{rank}"  # noqa: E731
    ends = on_ranks(2, lambda ranks: body(ranks, apart, 1))
    assert all("must be on storage that all nodes share" in end for end in ends)
    assert notes.kinds().count("checkpoint_failed") == 2
    assert on_ranks(2, lambda ranks: body(ranks, lambda rank: apart(0), 1)) == [0, 0]

    ends = on_ranks(2, lambda ranks: body(ranks, apart, 2))
    assert any(isinstance(end, NoUsableCheckpoint) for end in ends)
    bad = [fields for kind, fields in notes.kept if kind == "checkpoint_bad"]
    assert [fields["moved_to"] for fields in bad] == [None]
    assert "rank 1 does not find it; the folder must be on storage that all nodes share" in bad[0]["reason"]
    assert committed_steps(apart(0)) == [1]


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_all_ranks_are_killed_and_nothing_is_done_again(tmp_path: Path, ranks: int) -> None:
    """Two nodes, killed after a snapshot of step 6: the next attempt goes on from it, with the bits of an undisturbed
    run on every rank, also where one node is a new one, which has nothing."""
    world, die = 2 * ranks, lambda step: "die=" + ",".join(f"{rank}@{step}" for rank in range(2 * ranks))
    with nodes(tmp_path / "whole", "state-whole", ranks) as whole:
        assert [end.code for end in whole.train(9, attempt=0, every=100)] == [0] * world
        undisturbed = whole.lines(0, world)

    with nodes(tmp_path / "cut", "state-cut", ranks) as cut:
        assert [end.code for end in cut.train(9, die(6), attempt=0, every=100)] == [-9] * world
        assert [newest_snapshot(cut.segment(node)) for node in (0, 1)] == [6, 6]
        if ranks == 2:
            assert [end.code for end in cut.train(9, die(8), attempt=1, every=100)] == [-9] * world
            assert cut.began(1, world) == [6] * world

        shutil.rmtree(cut.segment(ranks % 2))
        ends = cut.train(9, attempt=2, every=100)
        assert [end.code for end in ends] == [0] * world, ends
        assert cut.began(2, world) == [8 if ranks == 2 else 6] * world
        attempts = (0, 1, 2) if ranks == 2 else (0, 2)
        for rank, steps in enumerate(undisturbed):
            assert {at: told for attempt in attempts for at, told in cut.lines(attempt, world)[rank].items()} == steps


@pytest.mark.long
@pytest.mark.parametrize("lost", [0, 1])
def test_sharded_state_outlives_a_machine(tmp_path: Path, lost: int) -> None:
    """FSDP2 over two nodes: each has the other's part, too. A new machine takes the place of either; the bits are those
    of an undisturbed run."""
    with nodes(tmp_path / "whole", "state-fsdp") as whole:
        assert [end.code for end in whole.train(8, "sharded", attempt=0, every=100)] == [0, 0]
        undisturbed = whole.lines(0)
    with nodes(tmp_path / "cut", "state-fsdp") as cut:
        assert [end.code for end in cut.train(8, "sharded", "die=0@5,1@5", attempt=0, every=100)] == [-9, -9]
        shutil.rmtree(cut.segment(lost))
        ends = cut.train(8, "sharded", attempt=1, every=100)
        assert [end.code for end in ends] == [0, 0], ends
        assert cut.began(1) == [5, 5]
        for rank, steps in enumerate(undisturbed):
            assert {**cut.lines(0)[rank], **cut.lines(1)[rank]} == steps
