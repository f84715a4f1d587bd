"""Ranks that are late with their snapshots, or have none: what the others wait for, and what is left out."""

from __future__ import annotations

import time
from typing import Any

import pytest
from torch import nn

from tests.support.jobs import on_ranks
from tests.support.training import SAVE, TAKE, Here, Notes, training
from trainer.checkpoint import Checkpointer
from trainer.checkpoint.memory import memory, snapshots
from trainer.checkpoint.memory.tier import Wish


def test_no_rank_is_two_snapshots_ahead(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches, without an optimizer's step to wait at: when the ranks have met after a step, the one before it is
    whole, however long one of them copies."""
    monkeypatch.setattr(memory, "spare_cores", lambda here: True)

    def body(ranks: Any) -> Any:
        found = []
        ckpt = Checkpointer(model=nn.Linear(3, 3), every=1000, snapshot_every=1)
        ckpt._ranks = ranks
        ckpt.restore()
        assert ckpt._tier is not None
        segment = ckpt._tier._memory.segment
        begin = segment.begin

        def slowly(size: int, pin: int | None) -> Any:
            time.sleep(0.05)  # as a large state is copied
            return begin(size, pin)

        if ranks.rank == 1:
            segment.begin = slowly  # type: ignore[method-assign]
        for step in range(1, 7):
            agreed = Wish(*ranks.any(*ckpt.wish()))
            found.append(snapshots.newest_snapshot(here.segment))
            ckpt.step(step, agreed)
        ckpt._tier.close()
        return found

    assert on_ranks(2, body) == [[None, 1, 2, 3, 4, 5]] * 2


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_a_save_without_its_snapshot(here: Here, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank had no buffer for it. By the clock: rank 0 wishes the next one. By a number of steps: it is lost, and
    told."""
    monkeypatch.setattr(memory, "_LATE_S", 0.0)
    monkeypatch.setattr(memory, "_PROMISED_S", 0.0)
    for every, lost in ((None, []), (3, [3])):
        with training(every=every) as made:
            made.run(2)
            made.copied()
            with monkeypatch.context() as patch:
                patch.setattr(made.memory().segment, "begin", lambda size, pin: None)
                made.run(3, Wish() if every else SAVE)
                made.copied()
            made.run(4)
            assert made.ckpt.wish().save == (every is None)
            assert snapshots.pinned(here.segment) == []
        assert [fields["step"] for kind, fields in notes.kept if kind == "checkpoint_failed"] == lost
        snapshots.remove(here.segment)


def test_a_promised_save_waits_for_a_late_rank(here: Here, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after an earlier wait in vain; one that is not promised waits no longer."""
    monkeypatch.setattr(memory, "_LATE_S", 0.0)

    def body(ranks: Any) -> Any:
        ckpt = Checkpointer(model=nn.Linear(3, 3), every=4, snapshot_every=1)
        ckpt._ranks = ranks
        ckpt.restore()
        assert ckpt._tier is not None
        of_rank = ckpt._tier._memory
        segment, begin, left_out = of_rank.segment, of_rank.segment.begin, []
        tried = 0

        def late(size: int, pin: int | None) -> Any:
            nonlocal tried
            tried += 1
            return None if tried < 3 else begin(size, pin)

        for step in range(1, 6):
            if ranks.rank == 0 and step in (3, 4):
                tried, segment.begin = 0, late  # type: ignore[method-assign]
            ranks.exchange(None)
            ckpt.step(step, Wish(*ranks.any(*ckpt.wish())))
            of_rank.wait()
            left_out.append(of_rank.left_out)
            ranks.exchange(None)
        ckpt._tier.close()
        return left_out

    assert on_ranks(2, body)[0] == [None, None, 3, 3, 3]
    assert [f["step"] for kind, f in notes.kept if kind == "flush_due"] == [4]
    assert "checkpoint_failed" not in notes.kinds()


def test_a_rank_commits_the_snapshot_of_a_save_later(here: Here, notes: Notes) -> None:
    """As on a GPU, whose copies no step waits for: it is told once that rank has it, and not given up before."""

    def body(ranks: Any) -> Any:
        late, told = [], []
        ckpt = Checkpointer(model=nn.Linear(3, 3), every=None, snapshot_every=1)
        ckpt._ranks = ranks
        ckpt.restore()
        assert ckpt._tier is not None
        memory = ckpt._tier._memory
        commit = memory.segment.commit
        for step in range(1, 7):
            if ranks.rank == 1 and step == 3:
                memory.segment.commit = lambda *record: late.append(record)  # type: ignore[method-assign]
            if ranks.rank == 1 and step == 5:
                commit(*late[0])
            ranks.exchange(None)
            ckpt.step(step, SAVE if step == 3 else TAKE if step < 3 else Wish())
            memory.wait()
            told.append("flush_due" in notes.kinds())
            ranks.exchange(None)
        ckpt._tier.close()
        return told

    assert on_ranks(2, body)[0] == [False, False, False, False, True, True]
    assert [fields["step"] for kind, fields in notes.kept if kind == "flush_due"] == [3]
    assert "checkpoint_failed" not in notes.kinds() and snapshots.pinned(here.segment) == [3]
