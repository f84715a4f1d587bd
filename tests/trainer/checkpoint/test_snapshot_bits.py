"""What a reader finds in shared memory at each write, and what an optimizer may do meanwhile: bits, not statistics."""

from __future__ import annotations

import copy
import mmap
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.jobs import on_ranks, same
from tests.support.training import TAKE, Here, Training, train, training
from trainer.checkpoint import CheckpointError
from trainer.checkpoint.disk.restore import recall
from trainer.checkpoint.memory import copier, image, segment, snapshots
from trainer.checkpoint.memory.board import Board

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")


def _weights(folder: Path, step: int) -> dict[str, Any]:
    """Model and optimizer as the snapshot of `step` has them."""
    shared = recall(folder, step, "run", 0).shared
    return {"model": shared["model"], "optimizer": shared["optimizer"]}


def _now(made: Training) -> dict[str, Any]:
    return copy.deepcopy({"model": dict(made.model.state_dict()), "optimizer": made.optimizer.state_dict()})


def _by(made: Training, which: str) -> Callable[[], object]:
    """What changes the weights: the optimizer that is saved, or another one of the script's."""
    if which == "own":
        return made.update
    other = torch.optim.SGD(made.model.parameters(), lr=1.0)
    return other.step


@pytest.mark.parametrize("here", [True], indirect=True, ids=["overlapped"])
@pytest.mark.parametrize("which", ["own", "another"])
def test_an_optimizer_waits_for_the_copy(here: Here, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """The copy begins when the next step of the optimizer is over, or after 0.3 s: with a gate that holds, before
    it."""
    stepped, real = threading.Event(), copier.Copier.copy

    def copy_late(*given: Any) -> None:
        stepped.wait(0.3)
        real(*given)

    with training() as made:
        made.run(3)
        made.copied()
        made.backward()
        made.update()
        monkeypatch.setattr(copier.Copier, "copy", copy_late)
        wanted = _now(made)
        made.ckpt.step(4, TAKE)
        made.backward()
        _by(made, which)()
        stepped.set()
        made.copied()
        assert same(_weights(here.segment, 4), wanted)
        assert not same(_now(made)["model"], wanted["model"])


@pytest.mark.parametrize("here", [True], indirect=True, ids=["overlapped"])
def test_the_optimizers_of_two_ranks_wait(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's copy is late; what is committed is the weights of that step, on both."""
    seen, real = {}, copier.Copier.copy

    def copy_late(*given: Any) -> None:
        threading.Event().wait(0.02)
        real(*given)

    monkeypatch.setattr(copier.Copier, "copy", copy_late)

    def agreed(step: int) -> Any:
        newest = snapshots.find(here.segment)
        if newest is not None and newest.step not in seen:
            seen[newest.step] = _weights(here.segment, newest.step)["model"]["weight"]
        return TAKE

    on_ranks(2, lambda ranks: train(ranks, range(6), agreed))
    assert len(seen) >= 4
    for step, weight in seen.items():
        plain = on_ranks(1, lambda ranks, n=step: train(ranks, range(n), snapshot_every=None, resume="never"))  # type: ignore[misc]
        assert same(weight, plain[0][1])


def test_a_copy_that_fails_in_any_way_is_the_end_of_snapshots(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the thread that copies, for which training would then wait; nor of training, where there is no such
    thread."""

    def fails(*_: Any) -> None:
        raise KeyError("anything")

    with training() as made:
        made.run(2)
        made.copied()
        for kind in (copier.Copier, copier.BlockingCopier):
            monkeypatch.setattr(kind, "copy", fails)
        made.run(4)
        made.memory().wait()
        assert made.ckpt.wish().lost
        assert snapshots.newest_snapshot(here.segment) == 2


class _Watched:
    """Calls back before and after each write to shared memory: of a record, of the file's parts, of each tensor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, look: Callable[[], None]) -> None:
        class Memory(mmap.mmap):
            def __setitem__(self, at: Any, value: Any) -> None:
                look()
                super().__setitem__(at, value)
                look()

        put = Board.put

        def put_watched(board: Board, slot: str, raw: bytes) -> None:
            look()
            put(board, slot, raw)
            look()

        def copy_each(_self: Any, _buffer: Any, _memory: Any, pairs: list[image.Pair], own: list[image.Pair]) -> None:
            for pair in pairs + own:
                look()
                image.copy_here([pair])
            look()

        monkeypatch.setattr(segment, "mmap", SimpleNamespace(mmap=Memory))
        monkeypatch.setattr(Board, "put", put_watched)
        for kind in (copier.Copier, copier.BlockingCopier):
            monkeypatch.setattr(kind, "copy", copy_each)


def test_a_reader_at_each_write(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the rank died there: the newest snapshot is the one before, or this one, and either is that step's to the
    bit."""
    wanted: dict[int, dict[str, Any]] = {}
    found: list[tuple[int, int]] = []
    wrong: list[str] = []
    taking = 0

    def look() -> None:
        newest = snapshots.newest_snapshot(here.segment)
        if newest is None:
            if taking > 1:
                wrong.append(f"none while {taking} is written")
            return
        found.append((taking, newest))
        try:
            good = newest in (taking - 1, taking) and same(_weights(here.segment, newest), wanted[newest])
        except CheckpointError as error:
            wrong.append(f"{newest} while {taking} is written: {error}")
        else:
            if not good:
                wrong.append(f"{newest} while {taking} is written")

    _Watched(monkeypatch, look)
    with training() as made:
        for taking in range(1, 6):
            made.backward()
            made.update()
            wanted[taking] = _now(made)
            made.ckpt.step(taking, TAKE)
            made.copied()
    assert wrong == []
    # There were moments of both kinds, many of them before the commit.
    assert len([pair for pair in found if pair[0] == pair[1] + 1]) > 40
    assert {pair[1] for pair in found if pair[0] == pair[1]} == set(range(1, 6))
