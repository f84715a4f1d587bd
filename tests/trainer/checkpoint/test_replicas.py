"""State that should be the same on every rank is compared before it is saved once for all of them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.jobs import on_ranks
from trainer.checkpoint import Checkpointer, StateError
from trainer.checkpoint import replicas as module
from trainer.checkpoint.disk.restore import load
from trainer.checkpoint.errors import ReplicasDiffer
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.replicas import Replicas, folded
from trainer.checkpoint.state.packing import pack
from trainer.rundir.layout import committed_steps


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> threading.local:
    """The ranks that a Checkpointer finds, one for each thread."""
    local = threading.local()
    monkeypatch.setattr("trainer.checkpoint.checkpointer.this_group", lambda: local.ranks)
    return local


def _model() -> nn.Module:
    # Not seeded: the ranks are threads, and share their generator.
    model = nn.Linear(3, 3)
    for param in model.parameters():
        nn.init.constant_(param, 0.5)
    model.register_buffer("average", torch.zeros(1 << 17))
    return model


def _slice(rank: int) -> dict[str, Any]:
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.fill_(float(rank))
        model.bias.fill_(1.0)
    return {"model": model}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (_slice, r"model/weight is not the same on all ranks \(one value on ranks 0, 2, another on rank 1\); "),
        (lambda rank: {"extra": {"seen": {"at": rank}}}, r"extra/seen/at is not the same.*PerRank\(value\)"),
        (lambda rank: {"model": nn.Linear(2, 2 + rank % 2)}, r"model/weight is not the same on all ranks"),
    ],
)
def test_what_nobody_declared_is_refused(tmp_path: Path, here: threading.local, parts: Any, says: str) -> None:
    """At the first step, on every rank, before anything is saved: slices made by hand, values in extra."""

    def body(ranks: Ranks) -> str:
        here.ranks = ranks
        ckpt = Checkpointer(**parts(ranks.rank % 2), directory=tmp_path, every=100)
        ckpt.restore()
        with pytest.raises(StateError, match=says) as refused:
            ckpt.step(1)
        return str(refused.value)

    told = on_ranks(3, body)
    assert len(set(told)) == 1 and isinstance(told[0], str), told
    assert committed_steps(tmp_path) == []


def test_ranks_that_are_trusted(tmp_path: Path, here: threading.local) -> None:
    """Weights that differ between two averages of them, as local SGD has them: saved where they are the same."""

    def body(ranks: Ranks) -> None:
        here.ranks, model = ranks, _model()
        ckpt = Checkpointer(model=model, directory=tmp_path, every=2, replicas="trust")
        for step in range(ckpt.restore(), 2):
            nn.init.constant_(model.weight, float(ranks.rank if step == 0 else 7))  # type: ignore[arg-type]
            ckpt.step(step + 1)

    assert on_ranks(2, body) == [None, None]
    weight = load(tmp_path / "step-00000002", 0).shared["model"]["weight"]
    assert torch.equal(weight, torch.full((3, 3), 7.0))


def test_replicas_that_drift_apart(tmp_path: Path, here: threading.local) -> None:
    """One bit of one weight, later: the step is not saved, and the error has the last step that was the same."""

    def body(ranks: Ranks) -> Any:
        here.ranks, model = ranks, _model()
        ckpt = Checkpointer(model=model, directory=tmp_path, every=2)
        for step in range(ckpt.restore(), 6):
            if (ranks.rank, step) == (1, 4):
                model.weight.detach().view(torch.int32)[2, 2] ^= 1
            try:
                ckpt.step(step + 1)
            except ReplicasDiffer as error:
                return step + 1, error.equal_at, "model/weight" in str(error), "in step 6" in str(error)
        return None

    assert on_ranks(2, body) == [(6, 4, True, True)] * 2
    assert committed_steps(tmp_path) == [2, 4]


def test_the_loss_that_lbfgs_keeps(tmp_path: Path, here: threading.local) -> None:
    """It is that of each rank's batch, and nobody reads it: all else of LBFGS is compared, and is the same."""

    def body(ranks: Ranks) -> Any:
        here.ranks, model = ranks, _model()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
        ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path, every=1)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.ones(1, 3)).square().sum()
            loss.backward()
            return loss + ranks.rank

        for step in range(ckpt.restore(), 3):
            optimizer.step(closure)  # type: ignore[no-untyped-call]
            ckpt.step(step + 1)
        return next(iter(optimizer.state_dict()["state"].values()))["prev_loss"]

    first, second = on_ranks(2, body)
    assert second == pytest.approx(first + 1)
    assert committed_steps(tmp_path) == [1, 2, 3]


def test_a_large_buffer_that_differs_is_each_ranks_own(tmp_path: Path, here: threading.local) -> None:
    """It is shared while it is the same; each rank's own from the first comparison on at which it is not, and after a
    restore without another comparison."""

    def body(ranks: Ranks) -> None:
        here.ranks, model = ranks, _model()
        ckpt = Checkpointer(model=model, directory=tmp_path, every=1)
        for step in range(ckpt.restore(), 2):
            model.average.fill_(float(ranks.rank * step))  # type: ignore[operator,union-attr]
            ckpt.step(step + 1)

    def back(ranks: Ranks) -> Any:
        here.ranks, model = ranks, _model()
        ckpt = Checkpointer(model=model, directory=tmp_path, every=1)
        step, specs = ckpt.restore(), ckpt._capture()[0].specs
        return step, float(model.get_buffer("average")[5]), ckpt._source.led(specs)

    assert on_ranks(2, body) == [None, None]
    owned = [load(tmp_path / f"step-0000000{step}", 1).own or {} for step in (1, 2)]
    assert ["buffers" in own for own in owned] == [False, True]
    assert on_ranks(2, back) == [(2, 0.0, {"model/average"}), (2, 1.0, {"model/average"})]


class Clock(threading.local):
    """Whoever looks at it twice sees that a quarter of a second has passed."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 0.25
        return self.now


def test_comparisons_keep_to_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """One part in a thousand of the time, as measured; none with one rank, none twice for a step."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)

    def body(ranks: Ranks) -> Any:
        replicas, shared = Replicas(ranks), pack({"w": torch.zeros(1 << 20)})
        assert not replicas.compare(shared, 1, frozenset())
        assert [replicas.due(clock.now + later) for later in (249.9, 250.1)] == [False, True]
        again = replicas.compare(shared, 1, frozenset()), replicas.equal_at
        # To make the state is a part of the cost, here a minute.
        replicas.compare(shared, 2, frozenset(), began=clock.now - 60)
        assert [replicas.due(clock.now + later) for later in (60_200, 60_300)] == [False, True]
        return again

    assert on_ranks(2, body) == [(False, 1)] * 2
    assert not Replicas(Ranks()).due(1e9)


@given(data=st.data(), size=st.integers(1, 40), dtype=st.sampled_from([torch.uint8, torch.bfloat16, torch.float64]))
def test_a_digest_on_a_device(data: st.DataObject, size: int, dtype: torch.dtype) -> None:
    """Any one changed bit, or two elements that are exchanged, change it; a copy elsewhere in memory does not."""
    raw = torch.randint(0, 256, (size * dtype.itemsize,), dtype=torch.uint8)
    one = raw.view(dtype)
    moved = torch.cat([one[:1], one])[1:]
    assert int(folded(one)) == int(folded(moved))
    bit = data.draw(st.integers(0, 8 * raw.numel() - 1))
    other = raw.clone()
    other[bit // 8] ^= 1 << (bit % 8)
    assert int(folded(one)) != int(folded(other.view(dtype)))
    words = torch.randint(-(2**62), 2**62, (8,))
    assert int(folded(words)) != int(folded(words.roll(1)))
