"""The state of a training over several nodes: saved, found again, and never lost in silence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from tests.support.jobs import on_ranks
from tests.support.training import Notes
from tests.support.two_nodes import nodes
from trainer.checkpoint import Checkpointer, CheckpointError, NoUsableCheckpoint
from trainer.checkpoint.disk.store import verify
from trainer.checkpoint.memory.snapshots import newest_snapshot
from trainer.rundir.layout import committed_steps, step_name


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


def test_a_rank_is_killed_and_nothing_is_done_again(tmp_path: Path) -> None:
    """Two nodes of two ranks, killed together after a snapshot of step 6: both go on from it, each from its own memory,
    with the bits of an undisturbed run on every rank. So do they if one node is a new one, which has nothing."""
    with nodes(tmp_path / "whole", "state-whole", ranks=2) as whole:
        assert [end.code for end in whole.train(9, attempt=0, every=100)] == [0] * 4
        undisturbed = whole.lines(0, 4)

    with nodes(tmp_path / "cut", "state-cut", ranks=2) as cut:
        killed = cut.train(9, "die=0@6,1@6,2@6,3@6", attempt=0, every=100)
        assert all(end.code for end in killed)
        assert [newest_snapshot(cut.segment(node)) for node in (0, 1)] == [6, 6]
        assert [end.code for end in cut.train(8, "die=0@8,1@8,2@8,3@8", attempt=1, every=100)] == [-9] * 4
        assert cut.began(1, 4) == [6] * 4

        shutil.rmtree(cut.segment(0))
        ends = cut.train(9, attempt=2, every=100)
        assert [end.code for end in ends] == [0] * 4, ends
        assert cut.began(2, 4) == [8] * 4
        for rank, steps in enumerate(undisturbed):
            again = {**cut.lines(0, 4)[rank], **cut.lines(1, 4)[rank], **cut.lines(2, 4)[rank]}
            assert again == steps
