"""Slices that a program has made by hand, as shard_spec= declares them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.jobs import on_ranks, same
from tests.support.training import TAKE, Here
from trainer.checkpoint import Checkpointer, CheckpointMismatch, Shard, StateError
from trainer.checkpoint.disk.restore import load
from trainer.checkpoint.group import Ranks

WHOLE = {"up.weight": (7, 4), "up.bias": (7,), "down.weight": (4, 7), "down.bias": (4,)}
CUTS = {1: [0, 7], 2: [0, 3, 7], 4: [0, 2, 4, 6, 7]}


class Net(nn.Module):
    """Slice `rank` of `of` of two layers."""

    def __init__(self, rank: int, of: int) -> None:
        super().__init__()
        width = CUTS[of][rank + 1] - CUTS[of][rank]
        self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)


def _cut(name: str, value: torch.Tensor, rank: int, of: int) -> torch.Tensor:
    part = slice(CUTS[of][rank], CUTS[of][rank + 1])
    return value[part] if name.startswith("up.") else value[:, part] if name == "down.weight" else value


def _number(name: str, step: int) -> torch.Tensor:
    return torch.rand(WHOLE[name], generator=torch.Generator().manual_seed(1000 * step + len(name)))


def _train(ranks: Ranks, of: int, steps: int, **options: Any) -> tuple[int, dict[str, Any]]:
    """So many more steps, on slices `of` each of which so many ranks share; where it began, and this rank's state."""
    rank = ranks.rank % of
    net = Net(rank, of)
    with torch.no_grad():
        for name, param in net.named_parameters():
            param.copy_(_cut(name, _number(name, 0), rank, of))
    params = dict(net.named_parameters())
    # Another order each time: names lead to the states.
    optimizer = torch.optim.AdamW([params[name] for name in sorted(params, reverse=of % 3 == 2)], lr=0.1)
    spec = {"up.*": Shard(0, rank, of), "down.weight": Shard(1, rank, of)}
    ckpt = Checkpointer(
        model=net, optimizer=optimizer, **{"shard_spec": spec, "every": None, "snapshot_every": 1, **options}
    )
    ckpt._ranks = ranks
    start = ckpt.restore()
    for step in range(start, start + steps):
        for name, param in params.items():
            param.grad = _cut(name, _number(name, step + 1), rank, of).clone()
        optimizer.step()
        ckpt.step(step + 1, TAKE)
    # Ranks are threads here, and hooks of optimizers are for all of them: none goes while another steps.
    ranks.exchange(None)
    if ckpt._tier is None:
        assert ckpt.save()
    else:
        ckpt._tier.close()
        assert ckpt._tier._memory.problem is None
    found: dict[str, Any] = {}
    for name, param in params.items():
        found[name] = param.detach()
        found.update({f"{name}/{key}": value for key, value in optimizer.state[param].items()})
    return start, found


def _on_ranks(world: int, body: Callable[[Ranks], tuple[int, Any]]) -> list[tuple[int, Any]]:
    gc.collect()
    found = on_ranks(world, body)
    errors = [error for error in found if isinstance(error, BaseException)]
    # Where one rank fails the others wait for it in vain.
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return found


def _sliced(whole: dict[str, torch.Tensor], rank: int, of: int) -> dict[str, torch.Tensor]:
    return {name: _cut(name.split("/")[0], value, rank, of) if value.dim() else value for name, value in whole.items()}


@pytest.mark.parametrize("tier", ["disk", "memory"])
def test_slices_come_back_on_any_number_of_ranks(here: Here, tmp_path: Path, tier: str) -> None:
    """Weights and moments, in each step the same as on one rank that has all: 2 slices, then 4, two ranks for each of
    2, and one."""
    options = {} if tier == "memory" else {"directory": tmp_path / "checkpoints"}
    (_, expected), *_ = on_ranks(1, lambda ranks: _train(ranks, 1, 8, directory=tmp_path / "whole"))
    done = 0
    for number, (world, of) in enumerate([(2, 2), (4, 4), (4, 2), (1, 1)]):
        here.attempt(number, here.segment.parent)
        for rank, (start, found) in enumerate(_on_ranks(world, lambda ranks, of=of: _train(ranks, of, 2, **options))):
            assert start == done
            if number == 3:
                assert same(found, _sliced(expected, rank % of, of))
        done += 2


def test_what_lies_on_disk_is_the_whole_tensor(tmp_path: Path) -> None:
    """One process that knows nothing of slices reads it; a net of another width does not take it."""
    on_ranks(2, lambda ranks: _train(ranks, 2, 3, directory=tmp_path))
    (_, expected), *_ = on_ranks(1, lambda ranks: _train(ranks, 1, 3, directory=tmp_path / "whole"))
    model = load(tmp_path / "step-00000003", 0).shared["model"]
    assert same(model, {name: expected[name] for name in model})
    net = Net(0, 2)
    ckpt = Checkpointer(
        model=net, directory=tmp_path, shard_spec={"up.*": Shard(0, 0, 1), "down.weight": Shard(1, 0, 1)}
    )
    with pytest.raises(CheckpointMismatch, match=r"up.weight is \[7, 4\] .* in the checkpoint and \[3, 4\]"):
        ckpt.restore()


@pytest.mark.parametrize(
    ("specs", "word"),
    [
        ([{"up.*": Shard(0, 0, 2)}, {"up.*": Shard(0, 0, 2)}], "slice 0 of up.bias is not of the same shape"),
        ([{"down.*s": Shard(0, 0, 2)}, {"down.*s": Shard(0, 0, 2)}], "no rank has slice 1"),
        ([{"up.*": Shard(0, 0, 2)}, {"up.weight": Shard(0, 1, 2)}], "up.bias is not a slice of one tensor"),
        ([{"up.weight": Shard(0, 0, 2)}, {"up.weight": Shard(1, 1, 2)}], "not a slice of one tensor"),
        ([{"up.weight": Shard(1, 0, 2)}, {"up.weight": Shard(1, 1, 2)}], "differ in more than dimension 1"),
        ([{"up.bias": Shard(1, 0, 2)}, {"up.bias": Shard(1, 1, 2)}], "no plain tensor with a dimension 1"),
        ([{"upp.*": Shard(0, 0, 2)}, {}], "the model has no tensor of such a name"),
        ([{}, {"up.*": Shard(0, 1, 2)}], "is not a slice of one tensor"),
    ],
)
def test_slices_that_are_no_whole_are_refused(tmp_path: Path, specs: list[dict[str, Shard]], word: str) -> None:
    """The same on every rank, at restore()."""

    def body(ranks: Ranks) -> str:
        ckpt = Checkpointer(model=Net(ranks.rank, 2), directory=tmp_path, shard_spec=specs[ranks.rank])
        ckpt._ranks = ranks
        with pytest.raises(StateError, match=word) as caught:
            ckpt.restore()
        return str(caught.value)

    assert len(set(on_ranks(2, body))) == 1


def test_a_slice_that_cannot_be() -> None:
    for wrong in ((0, 2, 2), (0, -1, 2), (-1, 0, 2)):
        with pytest.raises(ValueError, match="rank from 0 to of - 1"):
            Shard(*wrong)
