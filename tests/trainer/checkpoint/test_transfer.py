"""Checkpoints from and for other programs: every tensor is the same there, and no stranger's pickle runs."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.jobs import same
from trainer.checkpoint import (
    Checkpointer,
    CheckpointError,
    CheckpointMismatch,
    Damaged,
    load,
    load_checkpoint,
    save_checkpoint,
)
from trainer.checkpoint.transfer import inward
from trainer.checkpoint.transfer.contents import shown
from trainer.checkpoint.transfer.difference import differences
from trainer.checkpoint.transfer.safetensors_files import export_hf
from trainer.checkpoint.transfer.torch_files import export_dcp, export_torch
from trainer.rundir.layout import step_name

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


class Tied(nn.Module):
    """Tied weights, two types of elements, a buffer, an empty tensor and one without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.randn(7, dtype=torch.bfloat16))
        self.register_buffer("counts", torch.arange(5))
        self.register_buffer("nothing", torch.empty(0))
        self.register_buffer("one", torch.tensor(2.5))


def _trained(folder: Path, steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    ckpt = Checkpointer(model=model, optimizer=optimizer, directory=folder, every=1, extra={"lr": 0.1})
    for step in range(ckpt.restore(), steps):
        (model.head(model.embed(torch.arange(9))).square().sum() + model.scale.sum()).backward()  # type: ignore[union-attr,operator]
        optimizer.step()
        ckpt.step(step + 1)
    ckpt.close()
    return model, optimizer


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def _taken(source: Path, folder: Path, *, step: str = "", trust: str = "") -> int:
    return inward.main([str(source), str(folder), step, trust])


def test_out_and_in_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Hugging Face has it (in one file and in several), as torch.save and as torch.distributed.checkpoint."""
    model, _ = _trained(tmp_path / "ours")
    path, wanted = tmp_path / "ours" / step_name(2), _state(model)
    export_hf(path, tmp_path / "one")
    export_hf(path, tmp_path / "many", largest=100)
    export_torch(path, tmp_path / "file.pt")
    export_dcp(path, tmp_path / "dcp")

    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    found = {key: load_file(tmp_path / "many" / file)[key] for key, file in index["weight_map"].items()}
    assert same(found, wanted) and index["metadata"]["total_size"] == sum(t.nbytes for t in wanted.values())
    assert same(dict(torch.load(tmp_path / "file.pt", weights_only=True)), wanted)
    live = {"model": {key: torch.zeros_like(value) for key, value in wanted.items()}}
    dcp.load(live, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert same(live["model"], wanted)

    for number, name in enumerate(("one", "many", "file.pt", "dcp")):
        assert _taken(tmp_path / name, tmp_path / "back", step=str(number), trust="trust") == 0
        other = Tied()
        assert load(tmp_path / "back" / step_name(number), model=other).step == number
        assert same(_state(other), wanted)
    assert [json.loads(line)["parts"] for line in capsys.readouterr().out.splitlines()] == [["model"]] * 4


def test_a_training_state_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Model, optimizer and step of a file of torch.save, of save_checkpoint, of a folder of DCP: a Checkpointer
    restores them; what is not taken is named."""
    model, optimizer = _trained(tmp_path / "ours")
    state: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "global_step": 7}
    torch.save({**state, "args": {"lr": 1}}, tmp_path / "a.pt")
    save_checkpoint(tmp_path / "b.pt", model, optimizer, 7)
    names = {id(param): name for name, param in model.named_parameters()}
    params = [names[id(param)] for param in optimizer.param_groups[0]["params"]]
    by_name = {
        "state": dict(zip(params, optimizer.state_dict()["state"].values(), strict=True)),
        "param_groups": [{**optimizer.state_dict()["param_groups"][0], "params": params}],
    }
    dcp.save({"model": model.state_dict(), "optim": by_name}, checkpoint_id=tmp_path / "c", no_dist=True)
    # By numbers, which are text there.
    dcp.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id=tmp_path / "d", no_dist=True
    )
    left = {"a.pt": ["args"], "b.pt": ["scaler", "extra"], "c": [], "d": []}
    for name, out in left.items():
        folder = tmp_path / f"from-{name}"
        assert _taken(tmp_path / name, folder, step="7", trust="trust") == 0
        assert json.loads(capsys.readouterr().out)["left_out"] == out
        other = Tied()
        resumed = torch.optim.AdamW(other.parameters(), 0.5)
        assert Checkpointer(model=other, optimizer=resumed, directory=folder, every=None).restore() == 7
        assert same(_state(other), _state(model))
        states = [[one.state[param] for param in one.param_groups[0]["params"]] for one in (resumed, optimizer)]
        assert same(*states)
        assert resumed.param_groups[0]["lr"] == 0.1


def test_the_plain_function_reads_them_too(tmp_path: Path) -> None:
    """load_checkpoint() of a file of torch.save and of Hugging Face's folder; what is not in it is a mismatch."""
    model, optimizer = _trained(tmp_path / "ours")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 5}, tmp_path / "a.pt")
    export_hf(tmp_path / "ours" / step_name(2), tmp_path / "hf")
    other = Tied()
    resumed = torch.optim.AdamW(other.parameters(), 0.5)
    assert load_checkpoint(tmp_path / "a.pt", other, resumed) == (5, None)
    assert same(_state(other), _state(model))
    assert same(list(resumed.state.values()), list(optimizer.state.values()))
    other = Tied()
    assert load_checkpoint(tmp_path / "hf", other) == (0, None)
    assert same(_state(other), _state(model))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointMismatch, match="holds no state for optimizer"):
        load_checkpoint(tmp_path / "hf", other, resumed)
    with pytest.raises(CheckpointMismatch, match="does not fit"):
        load_checkpoint(tmp_path / "hf", nn.Linear(2, 2))
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-30])
    with pytest.raises(Damaged):
        load_checkpoint(tmp_path / "a.pt", other)
    assert same(before, _state(other))


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_no_strangers_pickle_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of torch.save with more than data in it, and the pickle of DCP without leave: refused in one line."""
    torch.save({"model": {"w": torch.ones(1)}, "args": _Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    (tmp_path / "text.pt").write_text("no file of torch")
    (tmp_path / "empty").mkdir()
    torch.save({"w": torch.ones(1)}, tmp_path / "empty" / "pytorch_model.bin")
    (tmp_path / "hf").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "hf" / "x.safetensors")
    index = {"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save({"weights": 3}, tmp_path / "none.pt")
    says = {
        "evil.pt": "weights_only=True",
        "dcp": "--trust-pickle",
        "text.pt": "text.pt",
        "empty": "give the file pytorch_model.bin itself",
        "hf": "has b, which is in no file",
        "none.pt": "no model under",
    }
    for name, text in says.items():
        assert _taken(tmp_path / name, tmp_path / "out") == 1
        told = capsys.readouterr().err
        assert text in told and len(told.splitlines()) == 1
    assert not (tmp_path / "ran").exists() and not list(tmp_path.glob("out/step-*"))
    with pytest.raises(CheckpointError, match="a checkpoint of ours already"):
        _trained(tmp_path / "ours")
        inward.state_of(tmp_path / "ours" / step_name(2), False)


def test_where_two_differ(tmp_path: Path) -> None:
    """By names, counts and sizes; equal ones do not differ; a damaged one is not compared."""
    _trained(tmp_path / "a")
    source = tmp_path / "a" / step_name(2)
    assert list(differences(source, source)) == []

    torch.manual_seed(0)
    state = {"model": {"w": torch.zeros(4), "gone": torch.ones(1), "type": torch.ones(2)}, "step": 1}
    torch.save(state, tmp_path / "x.pt")
    changed = {"w": torch.tensor([0.0, 2.0, -3.0, float("nan")]), "type": torch.ones(2).half()}
    torch.save({"model": changed, "step": 1}, tmp_path / "y.pt")
    for name in "xy":
        assert _taken(tmp_path / f"{name}.pt", tmp_path / name) == 0
    found = {one.pop("name"): one for one in differences(tmp_path / "x" / step_name(1), tmp_path / "y" / step_name(1))}
    assert found == {
        "model/gone": {"only": "a"},
        "model/type": {"a": "float32 [2]", "b": "float16 [2]"},
        "model/w": {"elements": 3, "of": 4, "largest": 3.0, "not_finite": 1},
    }
    values = {one["name"] for one in differences(tmp_path / "a" / step_name(1), source)}
    assert {"model/embed.weight", "optimizer/state/0/step", "step"} <= values

    shard = source / "rank0.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    with pytest.raises(Damaged):
        list(differences(tmp_path / "a" / step_name(1), source))


def test_what_is_in_one(tmp_path: Path) -> None:
    """Every tensor, tied ones once, and those that are a rank's own."""
    model, _ = _trained(tmp_path)
    manifest, found = shown(tmp_path / step_name(2))
    kinds = {one.name: (one.kind, one.shape, one.bytes) for one in found}
    assert kinds["model/embed.weight"] == ("replicated", (16, 8), 512)
    assert kinds["model/scale"] == ("replicated", (7,), 14)
    assert kinds["model/one"] == ("replicated", (), 4)
    assert "model/head.weight" not in kinds
    assert kinds["rank0/rng/torch"][0] == "rank 0"
    assert manifest.step == 2 and len(_state(model)) == 6
