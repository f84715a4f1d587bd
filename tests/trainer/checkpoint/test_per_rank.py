"""What each rank has of its own comes back on the rank of its number; on another number of ranks, never by guess."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.jobs import on_ranks, same
from tests.support.training import Notes
from trainer.checkpoint import Checkpointer, CheckpointMismatch, PerRank, StateError
from trainer.checkpoint.disk.description import describe
from trainer.checkpoint.disk.flush import flush
from trainer.checkpoint.disk.restore import load, recall
from trainer.checkpoint.disk.save import Order, save
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.memory import snapshots
from trainer.checkpoint.memory.memory import Memory
from trainer.checkpoint.memory.place import Place
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.per_rank import Resize, buffers_of
from trainer.checkpoint.state.state import capture_rank
from trainer.checkpoint.state.tree import decode
from trainer.rundir.files.durable import DISK


class Reader:
    """Data with a place of its own on each rank."""

    def __init__(self, place: int) -> None:
        self.place = place

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "seen": torch.full((self.place,), float(self.place))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert same(state["seen"], torch.full((state["place"],), float(state["place"])))
        self.place = state["place"]


class Movable(Reader):
    def reshard(self, states: list[dict[str, Any]], rank: int, world_size: int) -> dict[str, Any]:
        assert len(states) == 2
        place = sum(state["place"] for state in states) + 100 * world_size + rank
        return {"place": place, "seen": torch.full((place,), float(place))}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.local]:
    """The ranks that a Checkpointer finds, one for each thread."""
    local = threading.local()
    monkeypatch.setattr("trainer.checkpoint.checkpointer.this_group", lambda: local.ranks)
    yield local


def _net(rank: int) -> nn.Module:
    """Every rank has the same weights, and has averaged other batches."""
    # Not seeded: the ranks are threads, and share their generator.
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for param in model.parameters():
        nn.init.constant_(param, 0.5)
    model[1].running_mean.fill_(float(rank))  # type: ignore[operator,union-attr]
    model.register_buffer("mask", torch.arange(1 << 17, dtype=torch.float32))
    return model


Body = Callable[[Ranks], Any]


def _saved(folder: Path, here: threading.local, world_size: int = 2) -> None:
    def body(ranks: Ranks) -> None:
        here.ranks, rank = ranks, ranks.rank
        extra = {"name": "run", "list": [1, PerRank((rank, torch.full((2,), float(rank))))], "own": PerRank(rank)}
        ckpt = Checkpointer(model=_net(rank), data=Reader(rank + 1), extra=extra, directory=folder, every=1)
        assert ckpt.restore() == 0
        ckpt.step(1)

    assert on_ranks(world_size, body) == [None] * world_size


def test_the_same_ranks(tmp_path: Path, here: threading.local, notes: Notes) -> None:
    """Data, marked values anywhere in extra, and BatchNorm's averages. A large buffer is written once."""
    _saved(tmp_path, here)

    def body(ranks: Ranks) -> Any:
        here.ranks, rank = ranks, ranks.rank
        model, data = _net(7), Reader(9)
        ckpt = Checkpointer(model=model, data=data, extra={"list": [1, PerRank(None)]}, directory=tmp_path)
        assert ckpt.restore() == 1
        assert same(ckpt.extra, {"name": "run", "list": [1, (rank, torch.full((2,), float(rank)))], "own": rank})
        return data.place, float(model[1].running_mean[0])  # type: ignore[index,arg-type]

    assert on_ranks(2, body) == [(1, 0.0), (2, 1.0)]
    own = load(tmp_path / "step-00000001", 1).own
    assert own is not None and set(own["buffers"]) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert not notes.warnings()


@pytest.mark.parametrize("world_size", [1, 3])
def test_another_number_of_ranks(tmp_path: Path, here: threading.local, world_size: int, notes: Notes) -> None:
    """Refused before anything is touched; moved by reshard(); or begun afresh where that was asked for. It is said."""
    _saved(tmp_path, here)

    def refused(ranks: Ranks) -> Any:
        here.ranks = ranks
        model, data = _net(7), Reader(9)
        ckpt = Checkpointer(model=model, data=data, directory=tmp_path)
        with pytest.raises(CheckpointMismatch, match=r"is of 2 ranks.*data is each rank's own; .*on_resize=\"reset\""):
            ckpt.restore()
        movable = Checkpointer(model=model, data=Movable(9), directory=tmp_path)
        with pytest.raises(CheckpointMismatch, match="extra/list/1 is each rank's own"):
            movable.restore()
        return data.place, float(model[1].running_mean[0])  # type: ignore[index,arg-type]

    def moved(ranks: Ranks) -> Any:
        here.ranks, rank = ranks, ranks.rank
        model, data = _net(7), Movable(9)
        extra = {
            "list": [1, PerRank(None, lambda values, rank, size: [value[0] for value in values])],
            "own": PerRank(None, lambda values, rank, size: sum(values) + rank),
        }
        ckpt = Checkpointer(model=model, data=data, extra=extra, directory=tmp_path)
        assert ckpt.restore() == 1
        assert ckpt.extra == {"name": "run", "list": [1, [0, 1]], "own": 1 + rank}
        return data.place, float(model[1].running_mean[0])  # type: ignore[index,arg-type]

    def afresh(ranks: Ranks) -> Any:
        here.ranks = ranks
        data = Reader(9)
        extra = {"own": PerRank("fresh")}
        ckpt = Checkpointer(model=_net(7), data=data, extra=extra, directory=tmp_path, on_resize="reset")
        assert ckpt.restore() == 1
        return data.place, ckpt.extra

    assert on_ranks(world_size, refused) == [(9, 7.0)] * world_size
    means = [0.0, 1.0, 0.0]
    assert on_ranks(world_size, moved) == [(3 + 100 * world_size + r, means[r]) for r in range(world_size)]
    assert any("data was resharded" in fields["text"] for kind, fields in notes.kept if kind == "warning")
    assert on_ranks(world_size, afresh) == [(9, {"name": "run", "list": [1, None], "own": "fresh"})] * world_size
    assert any("data begins afresh" in fields["text"] for kind, fields in notes.kept if kind == "warning")


def test_gradients_that_wait(tmp_path: Path, here: threading.local, notes: Notes) -> None:
    """Each rank's own. On another number of ranks refused, or begun afresh where that was asked for."""

    def restored(ranks: Ranks, start: int = 1, grad: float | None = None, **options: Any) -> Any:
        here.ranks, model = ranks, nn.Linear(2, 2)
        nn.init.constant_(model.weight, 1.0)
        nn.init.constant_(model.bias, 1.0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path, grads=True, every=1, **options)
        assert ckpt.restore() == start
        if grad is not None:
            model.bias.grad = torch.full((2,), grad)
            ckpt.step(start + 1)
        return model.weight.grad, model.bias.grad

    def refused(ranks: Ranks) -> None:
        with pytest.raises(CheckpointMismatch, match=r"gradients is each rank's own; go on with as many ranks"):
            restored(ranks)

    assert not [e for e in on_ranks(2, lambda r: restored(r, 0, float(r.rank))) if isinstance(e, BaseException)]
    assert same(on_ranks(2, restored), [(None, torch.full((2,), float(rank))) for rank in range(2)])
    assert on_ranks(1, refused) == [None]
    assert on_ranks(1, lambda ranks: restored(ranks, on_resize="reset")) == [(None, None)]
    assert sum("gradients begins afresh" in text for text in notes.warnings()) == 1


def test_what_was_saved_before_there_was_any(tmp_path: Path, here: threading.local) -> None:
    """A checkpoint with the state of `data` among the shared: every rank has that, on any number of ranks."""

    def body(ranks: Ranks) -> None:
        state = {"model": _net(0).state_dict(), "data": Reader(4).state_dict(), "step": 1, "extra": {"a": 1}}
        assert save(Order(tmp_path, 1, pack(state), capture_rank(ranks.rank)), ranks, DISK).error is None

    assert on_ranks(2, body) == [None, None]

    def back(ranks: Ranks) -> Any:
        here.ranks = ranks
        data = Reader(9)
        ckpt = Checkpointer(model=_net(7), data=data, directory=tmp_path)
        return ckpt.restore(), data.place, ckpt.extra

    for world_size in (2, 3):
        assert on_ranks(world_size, back) == [(1, 4, {"a": 1})] * world_size


@pytest.mark.parametrize("spare", [True, False])
def test_snapshots_and_what_is_flushed_of_them(tmp_path: Path, spare: bool) -> None:
    """From memory, and from the checkpoint that a flush makes: each rank's own, as it was when it was taken."""
    segment = tmp_path / "segment"

    def body(ranks: Ranks) -> None:
        rank, model, data = ranks.rank, _net(ranks.rank), Reader(ranks.rank + 1)
        place = Place(segment, rank, 2, 0, "run")
        memory = Memory(place, {"model": model, "data": data}, spare, lambda s: buffers_of(model, s, frozenset()))
        for step in (1, 2, 3):
            data.place += 1
            memory.take(step, {"own": PerRank([rank, step])}, owed=True)
            if step == 3:
                data.place = 99
                model[1].running_mean.fill_(99.0)  # type: ignore[operator,union-attr]
            memory.wait()
            ranks.exchange(memory.problem)
        memory.close()

    assert on_ranks(2, body) == [None, None]
    found = snapshots.find(segment, 3)
    assert found is not None and describe(found).world_size == 2
    assert flush(segment, tmp_path / "disk", 3, 2, None)["step"] == 3
    for rank in range(2):
        for loaded in (recall(segment, 3, "run", rank), load(tmp_path / "disk" / "step-00000003", rank)):
            assert loaded.own is not None
            assert loaded.own["data"]["place"] == rank + 4
            assert loaded.own["per_rank"] == {"extra/own": [rank, 3]}
            assert float(loaded.shared["model"]["1.running_mean"][0]) == 0.0
            assert not rank or float(loaded.own["buffers"]["1.running_mean"][0]) == 1.0


@dataclass(frozen=True, slots=True)
class _Holder:
    value: Any


def test_marks_inside_of_anything() -> None:
    """A rank's values come back into any container, and into a dataclass."""

    def holding(value: Any) -> Any:
        return {"extra": [OrderedDict(a=deque([value], 3)), _Holder((value, {frozenset([value])})), {1: value}]}

    packed = pack(holding(PerRank(5)))
    own = {"per_rank": {path: mark.value for path, mark in packed.marked.items()}}
    saved = SimpleNamespace(shared=decode(packed.tree), own=own, everyone=None)

    assert len(packed.marked) == 4
    assert Resize(0, 2, 2, "refuse", "it").settle(saved, {}, {}).state == holding(5)


def test_a_mark_where_no_rank_has_its_own(tmp_path: Path) -> None:
    """Inside the state of data, which is each rank's own already: an error that says so."""

    class Marked(Reader):
        def state_dict(self) -> dict[str, Any]:
            return {"place": PerRank(1)}

    with pytest.raises(StateError, match=r"rank0/data/place is a PerRank value"):
        Checkpointer(data=Marked(1), directory=tmp_path).restore()
