"""Pipeline stages: each rank's own model and optimizer, back to the bit on its rank, or refused in a sentence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.support.jobs import on_ranks, same
from tests.support.training import TAKE, Here
from trainer.checkpoint import Checkpointer, CheckpointMismatch, PerRank, StateError
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.sharded.parts import apart, together


def _stage(rank: int, names: bool | None) -> nn.Module:
    """Stage `rank`. With `names` its tensors have the names that they have in the whole model; None: only rank 0's."""
    layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    draw = torch.Generator().manual_seed(7 + rank)  # the ranks are threads here, with one global generator
    with torch.no_grad():
        for param in layers.parameters():
            param.copy_(torch.rand(param.shape, generator=draw))
    return nn.ModuleDict({f"stage{rank}": layers}) if names or (names is None and rank == 0) else layers


def _train(
    ranks: Ranks, steps: int, names: bool | None = True, marked: bool = False, **options: Any
) -> tuple[int, Any]:
    """So many more steps; where they began, and this rank's state."""
    model = _stage(ranks.rank, names)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    given: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if marked:
        given.update(model=PerRank(model), optimizer=PerRank(optimizer))
    ckpt = Checkpointer(**{**given, "every": None, "snapshot_every": 1, **options})
    ckpt._ranks = ckpt._replicas._ranks = ranks
    start = ckpt.restore()
    for step in range(start, start + steps):
        draw = torch.Generator().manual_seed(100 * step + ranks.rank)
        for param in model.parameters():
            param.grad = torch.randn(param.shape, generator=draw)
        for buffer in model.buffers():
            buffer.add_(1)
        optimizer.step()
        scheduler.step()
        ckpt.step(step + 1, TAKE)
        if ckpt._tier is not None:
            ckpt._tier._memory.wait()
        ranks.exchange(None)  # no rank is late for the next snapshot, on however slow a machine
    if ckpt._tier is None:
        ckpt.save()
    ckpt._stop.close()
    state = {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict(), "s": scheduler.state_dict()}
    return start, copy.deepcopy(state)


def _told(world: int, **options: Any) -> list[str]:
    """Why each rank refuses; not raised, since a rank that ends early would break the others' barrier."""

    def body(ranks: Ranks) -> str:
        try:
            _train(ranks, 1, **{"snapshot_every": None, **options})
        except (CheckpointMismatch, StateError) as error:
            return f"{type(error).__name__}: {error}"
        return "it did not refuse"

    return list(map(str, on_ranks(world, body)))


def _refused(world: int, **options: Any) -> str:
    """Why all ranks refuse: the same text."""
    told = _told(world, **options)
    assert len(set(told)) == 1, told
    return told[0]


WAYS = {"by the names of their tensors": (True, False), "by a mark": (False, True)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tier", ["memory", pytest.param("disk", marks=pytest.mark.long)])
def test_each_stage_comes_back_on_its_rank(here: Here, way: str, tier: str) -> None:
    names, marked = WAYS[way]
    more: dict[str, Any] = {"names": names, "marked": marked, **({} if tier == "memory" else {"snapshot_every": None})}
    on_ranks(2, lambda ranks: _train(ranks, 3, **more))
    second = on_ranks(2, lambda ranks: _train(ranks, 3, **more))
    undisturbed = on_ranks(2, lambda ranks: _train(ranks, 6, resume="never", **more))
    assert [start for start, _ in second] == [3, 3]
    for (_, resumed), (_, whole) in zip(second, undisturbed, strict=True):
        assert same(resumed, whole)
    assert not same(second[0][1]["optimizer"], second[1][1]["optimizer"])


def test_stages_move_to_no_other_number_of_ranks_nor_into_one_model_for_all(here: Here) -> None:
    on_ranks(2, lambda ranks: _train(ranks, 2, snapshot_every=None))
    for world, options in ((4, {}), (1, {}), (4, {"on_resize": "reset"})):
        text = _refused(world, **options)
        assert f"of 2 ranks, and there are {world} now: the model is each rank's own" in text
    text = _refused(2, names=False)
    assert "has a model of each rank, and here it is one for all ranks" in text


def test_one_model_for_all_is_no_stage_and_a_misfit_on_one_rank_is_one_on_all(here: Here, tmp_path: Path) -> None:
    on_ranks(1, lambda ranks: _train(ranks, 1, names=False, snapshot_every=None))
    text = _refused(2, marked=True)
    assert "of 1 ranks, and there are 2 now: the model is each rank's own" in text
    on_ranks(2, lambda ranks: _train(ranks, 1, directory=tmp_path, snapshot_every=None))
    text = _refused(2, names=None, directory=tmp_path)
    assert "CheckpointMismatch: rank 1: " in text and "it has no 0.weight, which the model has" in text


def test_stages_of_equal_names_are_refused_with_the_way_to_write_them(here: Here) -> None:
    text = _refused(2, names=False)
    assert "model/0.weight is not the same on all ranks" in text and "model=PerRank(model)" in text
    with pytest.raises(StateError, match="cannot be resharded"):
        Checkpointer(model=PerRank(nn.Linear(1, 1), reshard=lambda *_: None))  # type: ignore[arg-type]


def test_a_part_is_of_one_place_only() -> None:
    """Of a DTensor in a stage: it comes back where the rank has the same part, and is a mismatch else."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        net: Any = fully_shard(nn.Linear(4, 3), mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.AdamW(net.parameters())
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        for name, part in {"model": net, "optimizer": optimizer}.items():
            state = part.state_dict()
            found = together(apart(state, name), part, name)
            assert str(dict(found)) == str(dict(state))
        taken = apart(net.state_dict(), "model")
        taken["weight"]["at"] = [1, 0]
        with pytest.raises(CheckpointMismatch, match=r"model/weight is a part of \[3, 4\] from \[1, 0\] on"):
            together(taken, net, "model")
    finally:
        dist.destroy_process_group()
