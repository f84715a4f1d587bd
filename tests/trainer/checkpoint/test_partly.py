"""A checkpoint looked at, and taken in part: for a new head, a group that was added, an evaluation."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.support.jobs import on_ranks, same
from tests.support.training import Notes
from trainer.checkpoint import Checkpointer, CheckpointMismatch, NoUsableCheckpoint, PerRank, load
from trainer.checkpoint.group import Ranks
from trainer.rundir.layout import step_name


def _net(head: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, head))


def _trained(folder: Path, steps: int = 2, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = _net()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    ckpt = Checkpointer(model=model, optimizer=optimizer, directory=folder, every=1, **options)
    for step in range(ckpt.restore(), steps):
        model(torch.randn(5, 3)).sum().backward()
        optimizer.step()
        ckpt.step(step + 1)
    return model, optimizer


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_look_changes_nothing(tmp_path: Path) -> None:
    """Neither the parts, nor the generators, nor a folder whose newest checkpoint is damaged."""
    model = _net()
    ckpt = Checkpointer(model=model, directory=tmp_path / "none")
    assert ckpt.peek() is None and not (tmp_path / "none").exists()

    _trained(tmp_path, extra={"lr": 0.5, "mean": torch.arange(3.0)})
    ckpt = Checkpointer(model=model, directory=tmp_path)
    rng, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    found = ckpt.peek()
    assert found is not None and (found.step, found.world_size) == (2, 1)
    assert same(found.extra, {"lr": 0.5, "mean": torch.arange(3.0)})
    assert {"model/0.weight", "optimizer/state/5/exp_avg", "extra/mean"} < set(found.names)

    shard = tmp_path / step_name(2) / "rank0.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    files = _files(tmp_path)
    found = ckpt.peek()
    assert found is not None and found.step == 1
    assert _files(tmp_path) == files
    assert same(before, dict(model.state_dict())) and torch.equal(rng, torch.get_rng_state())
    assert Checkpointer(model=model, directory=tmp_path, resume="never").peek() is None


def test_values_of_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank sees its own; a rank that did not exist sees None."""
    local = threading.local()
    monkeypatch.setattr("trainer.checkpoint.checkpointer.this_group", lambda: local.ranks)

    def body(ranks: Ranks) -> Any:
        local.ranks = ranks
        ckpt = Checkpointer(extra={"own": [PerRank(ranks.rank + 5)]}, directory=tmp_path, every=1)
        if (found := ckpt.peek()) is not None:
            return dict(found.extra)
        ckpt.restore()
        return ckpt.step(1)

    assert on_ranks(2, body) == [None, None]
    assert on_ranks(3, body) == [{"own": [5]}, {"own": [6]}, {"own": [None]}]


def test_a_model_to_evaluate(tmp_path: Path) -> None:
    """From a checkpoint, a folder, a run: the model alone, and nothing else is touched. Else a mismatch or no
    checkpoint."""
    trained, _ = _trained(tmp_path / "checkpoints")
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / step_name(2)):
        model, rng = _net(), torch.get_rng_state()
        assert load(path, model=model).step == 2
        assert same(dict(model.state_dict()), dict(trained.state_dict()))
        assert torch.equal(rng, torch.get_rng_state())

    other = _net(head=3)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(CheckpointMismatch, match=r"2.weight is \[2, 4\] float32"):
        Checkpointer.load(tmp_path, model=other)
    assert same(before, dict(other.state_dict()))
    with pytest.raises(CheckpointMismatch, match=r"it has no a\.0\.weight, which the model has"):
        load(tmp_path, model={"a": _net()})
    with pytest.raises(NoUsableCheckpoint, match="no folder of checkpoints"):
        load(tmp_path / "other", model=_net())


def test_a_new_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What fits is taken, and each difference is told."""
    trained, _ = _trained(tmp_path)
    model = nn.Sequential(*_net(head=3), nn.Linear(3, 1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load(tmp_path, model=model, partial=True)

    wanted = {**before, **{k: v for k, v in trained.state_dict().items() if not k.startswith("2.")}}
    assert same(dict(model.state_dict()), wanted)
    told = capsys.readouterr().err
    assert "it has no 3.weight, 3.bias: kept as in the model" in told
    assert "it has other shapes or types of 2.weight ([2, 4] float32), 2.bias" in told


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("grouped", [False, True])
def test_one_rank_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, grouped: bool, rank: int
) -> None:
    """Of two, before and after they have met: no other rank is asked for anything, and rank 0 speaks."""
    trained, _ = _trained(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(dist, "new_group", lambda *args, **options: pytest.fail("the other rank is awaited"))
    if grouped:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
    try:
        model = _net(head=3)
        load(tmp_path, model=model, partial=True)
    finally:
        if grouped:
            dist.destroy_process_group()
    assert torch.equal(trained.state_dict()["0.weight"], model.state_dict()["0.weight"])
    assert ("other shapes" in capsys.readouterr().err) == (rank == 0)


def test_nothing_that_fits(tmp_path: Path) -> None:
    """Names with another prefix: a mismatch in part, too, and no training from the start with a warning."""
    _trained(tmp_path)
    model = _net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointMismatch, match=r"nothing of its model fits this one; it has no model\.0\.weight"):
        Checkpointer(model=model, ema=_net(), directory=tmp_path).restore(partial=True)
    assert same(before, dict(model.state_dict()))


def test_a_group_that_was_added(tmp_path: Path, notes: Notes) -> None:
    """Refused with a sentence that says what to call; with partial, states go by name, and the group is as it is
    here."""
    trained, optimizer = _trained(tmp_path)
    model = nn.Sequential(*_net(), nn.Linear(2, 2))
    mine = list(model.parameters())

    def made() -> Checkpointer:
        return Checkpointer(model=model, optimizer=grown, directory=tmp_path, every=None)

    grown = torch.optim.AdamW([{"params": mine[:6][::-1]}, {"params": mine[6:], "lr": 7.0}], 0.3)
    with pytest.raises(CheckpointMismatch, match=r"peek\(\) helps with, or restore\(partial=True\)"):
        made().restore()
    assert not grown.state
    assert made().restore(partial=True) == 2
    for was, now in zip(trained.parameters(), mine, strict=False):
        assert same(optimizer.state[was], grown.state[now])
        assert torch.equal(was, now)
    assert not any(param in grown.state for param in mine[6:])
    assert [group["lr"] for group in grown.param_groups] == [0.1, 7.0]
    texts = notes.warnings()
    assert any("no state that fits 3.weight, 3.bias: made anew" in text for text in texts)
    assert any("has 1 groups, this one 2" in text for text in texts)
    model(torch.randn(5, 3)).sum().backward()
    grown.step()


def test_groups_go_by_their_parameters(tmp_path: Path, notes: Notes) -> None:
    """Not by their place: a group that was put first, or that joins two, keeps its own values; one that is a part of
    another has those of that one."""

    def restored(lr: float, groups: list[list[str]]) -> list[tuple[float, float]]:
        model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "abcde"})
        made = [
            {"params": [model[name].weight for name in names], "lr": lr + at, "weight_decay": 2 * lr + at}
            for at, names in enumerate(groups)
        ]
        optimizer = torch.optim.AdamW(made)
        ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path, every=1)
        if ckpt.restore(partial=True) == 0:
            ckpt.step(1)
        return [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]

    ab, cd = (1.0, 2.0), (2.0, 3.0)
    assert restored(1.0, [["a", "b"], ["c", "d"]]) == [ab, cd]
    assert restored(5.0, [["e"], ["c", "d"], ["b"], ["a"]]) == [(5.0, 10.0), cd, ab, ab]
    assert any("those of e.weight keep their learning rate" in text for text in notes.warnings())
    assert restored(5.0, [["d", "e"], ["c", "b"], ["a"]]) == [cd, (6.0, 11.0), ab]
    assert any("those of c.weight keep their learning rate" in text for text in notes.warnings())


def test_another_class_of_optimizer(tmp_path: Path, notes: Notes) -> None:
    """Its state is not taken, nor mixed."""
    trained, _ = _trained(tmp_path)
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    ckpt = Checkpointer(model=model, optimizer=optimizer, directory=tmp_path, every=None)
    assert ckpt.restore(partial=True) == 2
    assert same(dict(model.state_dict()), dict(trained.state_dict()))
    assert not optimizer.state and optimizer.param_groups[0]["lr"] == 0.3
    assert any("another class than this SGD" in text for text in notes.warnings())
