"""save_checkpoint and load_checkpoint: one file, old or new, checked before it is used."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.disks import CrashingDisk, Cut
from tests.support.jobs import same
from tests.support.training import Notes
from trainer.checkpoint import CheckpointMismatch, Damaged, StateError, load_checkpoint, save_checkpoint


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 3
    betas: tuple[float, float] = (0.9, 0.95)


def _parts(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler]:
    model = nn.Linear(width, width)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, width)).sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    scaler.update(512.0)
    return model, optimizer, scaler


def test_round_trip(tmp_path: Path) -> None:
    """Model, optimizer, scaler, step and extra, a dataclass config in it as a dict, come back exactly."""
    model, optimizer, scaler = _parts()
    path = tmp_path / "ckpt.pt"
    extra = {"config": Config(), "best": float("inf"), "t": torch.ones(2), "o": OrderedDict(a=[Config()])}
    save_checkpoint(path, model, optimizer, 7, scaler, extra)
    others = _parts()
    step, extra = load_checkpoint(path, *others)

    assert step == 7
    config = {"width": 3, "betas": (0.9, 0.95)}
    assert same(extra, {"config": config, "best": float("inf"), "t": torch.ones(2), "o": OrderedDict(a=[config])})
    for a, b in zip((model, optimizer, scaler), others, strict=True):
        assert same(dict(a.state_dict()), dict(b.state_dict()))


def test_the_order_of_parameters_does_not_matter(tmp_path: Path) -> None:
    """An optimizer that was made in another order has each parameter's own state."""
    model, optimizer, _ = _parts()
    save_checkpoint(tmp_path / "ckpt.pt", model, optimizer, 7)
    other, _, _ = _parts()
    swapped = torch.optim.AdamW(reversed(list(other.parameters())))
    load_checkpoint(tmp_path / "ckpt.pt", other, swapped)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert same(optimizer.state[mine]["exp_avg"], swapped.state[theirs]["exp_avg"])


def test_torch_reads_the_file(tmp_path: Path) -> None:
    """It is an ordinary torch.save file that needs no unpickling of code."""
    model, optimizer, _ = _parts()
    save_checkpoint(tmp_path / "ckpt.pt", model, optimizer, 1, extra=Config())
    state = torch.load(tmp_path / "ckpt.pt", weights_only=True)

    assert same(state["model"], dict(model.state_dict()))


def test_model_alone(tmp_path: Path) -> None:
    """Only what was asked for is loaded, onto the device asked for."""
    model, optimizer, _ = _parts()
    save_checkpoint(tmp_path / "ckpt.pt", model, optimizer, 1)
    other = nn.Linear(3, 3)

    assert load_checkpoint(tmp_path / "ckpt.pt", other, map_location="cpu") == (1, None)
    assert same(dict(model.state_dict()), dict(other.state_dict()))


def test_every_death_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies at any call of the save leaves a file that loads."""
    model, optimizer, _ = _parts()
    path = tmp_path / "ckpt.pt"
    for cut in range(6):
        save_checkpoint(path, model, optimizer, 1)
        with monkeypatch.context() as patch:
            patch.setattr("trainer.checkpoint.plain.DISK", CrashingDisk(cut))
            try:
                save_checkpoint(path, model, optimizer, 2)
                ended = True
            except Cut:
                ended = False
        assert load_checkpoint(path, model)[0] in ((2,) if ended else (1, 2))
    assert ended


@pytest.mark.parametrize("where", [0, 5, 200, 0.3, 0.5, 0.9, -1, -20, -34, -40, -44, -60])
def test_a_flipped_byte_is_detected(tmp_path: Path, where: float) -> None:
    """Anywhere, the digest and its label included; nothing was loaded."""
    model, optimizer, _ = _parts()
    path = tmp_path / "ckpt.pt"
    save_checkpoint(path, model, optimizer, 1)
    data = bytearray(path.read_bytes())
    data[int(where * len(data)) if 0 < where < 1 else int(where)] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged):
        load_checkpoint(path, model)


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[: len(d) // 2], lambda d: b"", lambda d: bytes(len(d))]
)
def test_a_torn_file_is_detected(tmp_path: Path, damage: Any) -> None:
    """Cut short, empty, or zeros after a power cut: one clear error."""
    model, optimizer, _ = _parts()
    path = tmp_path / "ckpt.pt"
    save_checkpoint(path, model, optimizer, 1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Damaged, match=r"ckpt\.pt"):
        load_checkpoint(path, model)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    """A pickle that would run something, with a digest that is right: refused."""
    import xxhash

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return os.mkdir, (str(tmp_path / "proof"),)

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    body = (tmp_path / "evil.pt").read_bytes()[:-2]
    label = b"xxh3-128:" + xxhash.xxh3_128_hexdigest(body).encode()
    (tmp_path / "evil.pt").write_bytes(body + len(label).to_bytes(2, "little") + label)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(Damaged):
            load_checkpoint(tmp_path / name, nn.Linear(3, 3))
    assert not (tmp_path / "proof").exists()


def test_errors_are_clear(tmp_path: Path) -> None:
    """Another model, no file, something that cannot be stored."""
    model, optimizer, _ = _parts()
    save_checkpoint(tmp_path / "ckpt.pt", model, optimizer, 1)
    with pytest.raises(CheckpointMismatch, match=r"weight is \[3, 3\] float32 in the checkpoint and \[4, 4\]"):
        load_checkpoint(tmp_path / "ckpt.pt", nn.Linear(4, 4))
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.pt", model)
    with pytest.raises(StateError, match="extra/path"):
        save_checkpoint(tmp_path / "ckpt.pt", model, optimizer, 2, extra={"path": Path("x")})
    assert load_checkpoint(tmp_path / "ckpt.pt", model)[0] == 1


def test_a_part_that_is_not_in_the_file(tmp_path: Path) -> None:
    """A scaler that was not saved: a mismatch, and nothing has changed. One that is disabled has nothing to restore."""
    model, optimizer, _ = _parts()
    save_checkpoint(tmp_path / "ckpt.pt", model, optimizer, 1)
    other, fresh, scaler = _parts()
    before = copy.deepcopy([part.state_dict() for part in (other, fresh, scaler)])
    with pytest.raises(CheckpointMismatch, match=r"ckpt\.pt holds no state for scaler"):
        load_checkpoint(tmp_path / "ckpt.pt", other, fresh, scaler)
    assert same(before, [part.state_dict() for part in (other, fresh, scaler)])
    assert load_checkpoint(tmp_path / "ckpt.pt", other, fresh, torch.amp.GradScaler("cpu", enabled=False))[0] == 1
    assert same(dict(model.state_dict()), dict(other.state_dict()))


def test_differences_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], notes: Notes) -> None:
    """As by restore(): a layer that is frozen now, a scaler that was disabled when it was saved."""
    model, optimizer, scaler = _parts()
    save_checkpoint(tmp_path / "ckpt.pt", model, optimizer, 1, torch.amp.GradScaler("cpu", enabled=False))
    model.bias.requires_grad_(False)
    load_checkpoint(tmp_path / "ckpt.pt", model, optimizer, scaler)
    told, warnings = capsys.readouterr().err, notes.warnings()
    for part in ("bias trained there and is frozen here", "has no scaler state: it starts afresh"):
        assert part in told and any(part in text for text in warnings)
