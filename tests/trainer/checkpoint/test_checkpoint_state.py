"""Tensors of every kind come back bit for bit, at any world size, in files that other readers understand."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.support.jobs import on_ranks, same
from trainer.checkpoint.disk.restore import load
from trainer.checkpoint.disk.save import Order, save
from trainer.checkpoint.errors import CheckpointMismatch, StateError
from trainer.checkpoint.format.manifest import BLOCK
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.state import rng
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.state import apply, capture_rank
from trainer.checkpoint.state.tensors import DTYPES
from trainer.rundir.files.durable import DISK


def _through(folder: Path, state: Any, world_size: int = 1) -> Any:
    def body(ranks: Ranks) -> None:
        assert save(Order(folder, 1, pack(state), capture_rank(ranks.rank)), ranks, DISK).error is None

    assert on_ranks(world_size, body) == [None] * world_size
    return load(folder / "step-00000001", 0).shared


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_type_and_layout(tmp_path: Path, world_size: int) -> None:
    """All types that safetensors has, scalars, empty and non-contiguous tensors, views, transposes, conjugates."""
    noise = torch.randint(0, 256, (48,), dtype=torch.uint8)
    state: dict[str, Any] = {
        name: (noise.view(torch.bool) if dtype is torch.bool else noise.view(dtype)).clone()
        for name, dtype in DTYPES.items()
        if dtype is not torch.bool
    }
    state["BOOL"] = noise > 99
    square = torch.randn(6, 4)
    state |= {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(3, 0, 2),
        "transposed": square.t(),
        "strided": square[::2, 1:],
        "expanded": torch.randn(1, 4).expand(3, 4),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "a/b@1": torch.ones(2),
        "nested": {"a/b@1": [torch.zeros(2), (torch.ones(1),)]},
        "parameter": nn.Parameter(square),
    }
    back = _through(tmp_path, state, world_size)

    expected = {**state, "conjugate": state["conjugate"].resolve_conj(), "parameter": square}
    assert same(back, expected)


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    """One weight under two names: one copy on disk, and both names have it back."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    packed = pack({"model": model.state_dict()})
    back = _through(tmp_path, {"model": model.state_dict()})

    assert list(packed.tensors) == ["model/0.weight"]
    assert same(back["model"], dict(model.state_dict()))


def test_large_tensors_are_cut(tmp_path: Path) -> None:
    """A tensor of several blocks, over two ranks: half of it in each file, the same bits."""
    big = torch.randint(-9, 9, (3 * BLOCK + 5,), dtype=torch.int8)
    back = _through(tmp_path, {"big": big, "step": 1}, 2)

    assert torch.equal(back["big"], big)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "step-00000001").glob("*.safetensors"))]
    assert abs(sizes[0] - sizes[1]) < 64


def test_files_are_safetensors(tmp_path: Path) -> None:
    """The library reads a rank's file; whole tensors have their shape there."""
    weight = torch.randn(3, 5).to(torch.bfloat16)
    _through(tmp_path, {"model": {"w": weight}})
    file = safetensors.torch.load_file(tmp_path / "step-00000001" / "rank0.safetensors")

    assert torch.equal(file["model/w"], weight)


@pytest.mark.parametrize(
    ("tensor", "word"),
    [
        (torch.randn(2, 2).to_sparse(), "dense"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.zeros(2, device="meta"), "to_empty"),
    ],
)
def test_tensors_that_cannot_be_held_are_refused_by_path(tensor: torch.Tensor, word: str) -> None:
    """The error names where the tensor is and what is wrong with it."""
    with pytest.raises(StateError, match=f"extra/bad.*{word}"):
        pack({"extra": {"bad": tensor}})


def _parts(width: int, layers: int = 1) -> dict[str, Any]:
    model = nn.Sequential(*[nn.Linear(width, width) for _ in range(layers)])
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)}


@pytest.mark.parametrize(
    ("stored", "live", "message"),
    [
        ((2, 1), (3, 1), r"0.weight is \[2, 2\] float32 in the checkpoint and \[3, 3\] float32 in the model"),
        ((2, 1), (2, 2), r"it has no 1.weight, which the model has"),
        ((2, 2), (2, 1), r"it has 1.weight, which the model lacks"),
    ],
)
def test_a_mismatch_names_the_first_difference(stored: tuple[int, int], live: tuple[int, int], message: str) -> None:
    """Another model's state is refused in one line, and the model is as it was."""
    state = {name: part.state_dict() for name, part in _parts(*stored).items()}
    parts = _parts(*live)
    before = {key: value.clone() for key, value in parts["model"].state_dict().items()}
    with pytest.raises(CheckpointMismatch, match=message):
        apply(parts, state, "it")

    assert same(before, dict(parts["model"].state_dict()))


def test_another_optimizer_is_a_mismatch() -> None:
    """Other parameter groups: refused before the model is touched."""
    parts, other = _parts(2), _parts(2)
    before = {key: value.clone() for key, value in parts["model"].state_dict().items()}
    parts["optimizer"] = torch.optim.SGD([{"params": [p]} for p in parts["model"].parameters()], 0.1)
    with pytest.raises(CheckpointMismatch, match="groups"):
        apply(parts, {name: part.state_dict() for name, part in other.items()}, "it")

    assert same(before, dict(parts["model"].state_dict()))


def test_generators_as_checkpoints_stored_them_at_first() -> None:
    """Twisters as lists of numbers still come back."""
    stored = rng.capture()
    stored["python"] = random.getstate()
    stored["numpy"]["state"]["key"] = np.random.get_state()[1].tolist()
    expected = random.random(), np.random.rand()
    rng.seed(1)
    rng.apply(stored)
    assert (random.random(), np.random.rand()) == expected


def test_generators_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank may draw on a device that is not the current one. With fewer devices those that are left go on."""
    states = {device: torch.full((16,), device, dtype=torch.uint8) for device in range(3)}
    current, count = [0], [3]

    def set_state(state: torch.Tensor, device: int | None = None) -> None:
        states[current[0] if device is None else device] = state.clone()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count[0])
    monkeypatch.setattr(
        torch.cuda, "get_rng_state", lambda device=None: states[current[0] if device is None else device]
    )
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_state)
    stored = rng.capture()
    for device in states:
        states[device] = torch.zeros(16, dtype=torch.uint8)
    rng.apply(stored)
    assert [int(state[0]) for state in states.values()] == [0, 1, 2]

    count[0], current[0], states[2] = 2, 1, torch.full((16,), 9, dtype=torch.uint8)
    rng.apply(stored)
    assert [int(state[0]) for state in states.values()] == [0, 0, 9], "the current one goes on as the current one"
    count[0] = 1
    assert "cudas" not in rng.capture()


def test_generators_where_numpy_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state with numpy's in it comes back where there is no numpy: all but that, which is said."""
    stored = rng.capture()
    expected = random.random(), torch.rand(1)
    rng.seed(1)
    monkeypatch.setattr(torch.Tensor, "numpy", None)
    monkeypatch.delitem(sys.modules, "numpy")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = rng.apply(stored)
    assert (random.random(), torch.rand(1)) == expected
    assert said is not None and "numpy" in said
    assert "numpy" not in rng.capture()


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "Philox", "SFC64"])
def test_numpys_generator_of_any_kind(tmp_path: Path, kind: str) -> None:
    """Whichever generator numpy's global functions draw from, it goes on; another one than was saved is said."""
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(getattr(np.random, kind)(3))
        np.random.randn(1)
        stored = _through(tmp_path, {"rng": rng.capture()})["rng"]
        expected = np.random.randn(3).tolist()
        assert (rng.apply(stored), np.random.randn(3).tolist()) == (None, expected)
        np.random.set_bit_generator(np.random.PCG64DXSM(3))
        assert "does not take" in str(rng.apply(stored))
    finally:
        np.random.set_bit_generator(before)
