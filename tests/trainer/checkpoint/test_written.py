"""What is written can be read again, is what was given, and is where the program's own words say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard

from tests.support.jobs import on_ranks, same
from tests.support.training import Notes
from trainer.checkpoint import Checkpointer, PerRank, StateError, load, load_checkpoint, save_checkpoint
from trainer.checkpoint.disk.store import verify
from trainer.checkpoint.format import manifest, shard
from trainer.checkpoint.state.per_rank import buffers_of
from trainer.rundir.layout import committed_steps, step_name


class Loader:
    def state_dict(self) -> dict[str, Any]:
        return {"permutation": "x" * 100_000}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@pytest.mark.parametrize("where", ["a rank's header", "the manifest"])
def test_more_text_than_a_reader_takes_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Notes, where: str
) -> None:
    """The save fails and says what to do; what was saved before stays the newest. On two ranks none waits."""
    given: dict[str, Any] = {"data": Loader()} if where == "a rank's header" else {"extra": {"b": bytes(100_000)}}

    def save(ranks: Any) -> list[bool]:
        model = nn.Linear(2, 2)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        parts = {**given, "data": given["data"] if ranks.rank else None} if "data" in given else given
        ckpt = Checkpointer(model=model, directory=tmp_path, every=1, **parts)
        ckpt._ranks = ckpt._replicas._ranks = ranks
        ckpt._stop.close()
        ckpt.restore()
        found = []
        for step in (1, 2):
            ranks.exchange(None)
            if step == 2 and not ranks.rank:
                monkeypatch.setattr(shard, "_MAX_HEADER", 50_000)
                monkeypatch.setattr(manifest, "LARGEST", 100_000)
            ranks.exchange(None)
            ckpt._done = step
            found.append(ckpt.save())
        return found

    assert on_ranks(2, save) == [[True, False]] * 2
    monkeypatch.undo()
    assert committed_steps(tmp_path) == [1] and not list(tmp_path.glob(".step*"))
    assert verify(tmp_path / step_name(1)).step == 1


def test_two_values_of_one_path_are_two(tmp_path: Path) -> None:
    """The key "a/b", and "b" in "a"; 1 and "1"."""
    extra = {"a/b": torch.ones(1), "a": {"b": torch.zeros(2)}, 1: torch.ones(3), "1": torch.zeros(4)}
    save_checkpoint(tmp_path / "one.pt", nn.Linear(2, 2), torch.optim.SGD(nn.Linear(2, 2).parameters()), 1, extra=extra)
    _, back = load_checkpoint(tmp_path / "one.pt", nn.Linear(2, 2))
    assert same(back, extra)

    for marked in ({"a/b": PerRank(1), "a": {"b": PerRank(2)}}, {1: PerRank("int"), "1": PerRank("text")}):
        ckpt = Checkpointer(model=nn.Linear(2, 2), extra=marked, directory=tmp_path / "two", every=1)
        with pytest.raises(StateError, match="two PerRank values have the path extra/"):
            ckpt.restore()
        ckpt._stop.close()


def test_the_folder_is_where_the_program_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it changes its current folder before the first save."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    ckpt = Checkpointer(model=nn.Linear(2, 2), directory="ck", every=1)
    ckpt.restore()
    os.chdir("sub")
    ckpt.step(1)
    ckpt.close()
    assert committed_steps(tmp_path / "ck") == [1] and not list((tmp_path / "sub").iterdir())


def test_training_without_restore_beside_checkpoints_is_refused(tmp_path: Path) -> None:
    """A step that is there already would count as saved. In an empty folder it may."""
    for again in (False, True):
        ckpt = Checkpointer(model=nn.Linear(2, 2), directory=tmp_path, every=1)
        if again:
            load(tmp_path, model=nn.Linear(2, 2))
            with pytest.raises(StateError, match=r"has checkpoints up to step 1, .* call restore\(\)"):
                ckpt.step(1)
            assert ckpt.restore() == 1
            ckpt.step(2)
        else:
            ckpt.step(1)
        ckpt._stop.close()
    assert committed_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize("wrapped", ["then", "now", "both"])
def test_activation_checkpointing_comes_and_goes(tmp_path: Path, wrapped: str) -> None:
    """torch's wrapper is in the names of parameters and not in those of the state: it is no difference, neither in the
    optimizer's parameters nor in the buffers that are each rank's own."""
    weights: list[dict[str, Any]] = []
    for number, wraps in enumerate((wrapped != "now", wrapped != "then")):
        block: nn.Module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        model = nn.Sequential(checkpoint_wrapper(block) if wraps else block, nn.Linear(2, 1))
        optimizer = torch.optim.AdamW(model.parameters())
        ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path, every=1)
        assert ckpt.restore() == number
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        model(torch.rand(4, 2)).sum().backward()
        optimizer.step()
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        small = buffers_of(ckpt._parts["model"], ckpt._source.shared(1).specs, frozenset())
        assert {name.rpartition(".")[2] for name in small} == {"running_mean", "running_var", "num_batches_tracked"}
        ckpt.step(number + 1)
        ckpt.close()
    assert same(weights[1], weights[2])


def test_a_tied_weight_that_is_two_in_the_checkpoint(tmp_path: Path) -> None:
    """As other programs store it. A model that FSDP2 shards takes it as a plain one does."""

    def made() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))

    source = made()
    source[1].weight.data.copy_(source[0].weight.data)  # type: ignore[operator, union-attr]
    ckpt = Checkpointer(model=source, directory=tmp_path, every=1)
    ckpt.restore()
    ckpt.step(1)
    ckpt.close()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        tied = made()
        tied[1].weight = tied[0].weight  # type: ignore[assignment]
        fully_shard(tied)
        ckpt = Checkpointer(model=tied, directory=tmp_path, every=1)
        assert ckpt.restore() == 1
        whole = {name: value.full_tensor() for name, value in tied.state_dict().items()}
        ckpt._stop.close()
    finally:
        dist.destroy_process_group()
    assert same(whole, dict(source.state_dict()))
