"""Format 2 as other programs see it, what proves a part of it, and format 1, which an older version wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import xxhash
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as load_dcp

from tests.support.jobs import holds, on_ranks, same, state_of
from trainer.checkpoint.disk import store
from trainer.checkpoint.disk.restore import load
from trainer.checkpoint.disk.save import Order, save
from trainer.checkpoint.errors import CheckpointError, Damaged, Misfit
from trainer.checkpoint.format.boxes import Box
from trainer.checkpoint.format.manifest import BLOCK, Manifest
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.state import capture_rank
from trainer.checkpoint.transfer.safetensors_files import export_safetensors
from trainer.rundir.files.durable import DISK

RECORDED = Path(__file__).parent / "format_1"


W = torch.arange(24, dtype=torch.float32).reshape(4, 6)
OTHERS = {"half": W.to(torch.bfloat16)[:, ::2], "empty": torch.zeros(0, 3), "scalar": torch.tensor(3)}


def _written(folder: Path, state: Any, world_size: int) -> Path:
    """A checkpoint of that many ranks, which all have `state`."""

    def body(ranks: Ranks) -> str | None:
        return save(Order(folder, 1, pack(state), capture_rank(ranks.rank)), ranks, DISK).error

    assert on_ranks(world_size, body) == [None] * world_size
    return folder / "step-00000001"


def _with(path: Path, change: Callable[[Any], object]) -> None:
    """The manifest of `path` is another one, under a digest that is right."""
    body = json.loads((path / "manifest.json").read_bytes())
    del body["digest"]
    change(body)
    raw = json.dumps(body).encode()[:-1]
    (path / "manifest.json").write_bytes(raw + b',"digest":"%s"}\n' % xxhash.xxh3_128_hexdigest(raw).encode())


def test_format_1_is_read(tmp_path: Path) -> None:
    """A folder that an older version wrote, of two ranks: verified, restored whole and in part, exported."""
    path = RECORDED / "step-00000002"
    assert {stored.flat for stored in store.verify(path).tensors.values()} == {True}
    assert holds(RECORDED, 2)
    expected = state_of(2)["model"]["w"]

    class Corner:
        box = Box((1, 1), (1, 3))

        def made(self, local: torch.Tensor) -> torch.Tensor:
            return local

    def places(manifest: Manifest) -> dict[str, Corner]:
        return {"model/w": Corner()}

    for rank in range(2):
        found = load(path, rank, 2, places)
        assert found.own is not None and "rng" in found.own
        assert torch.equal(found.shared["model"]["w"], expected[1:2, 1:4])
    assert export_safetensors(path, tmp_path / "out") == []
    with safetensors.safe_open(tmp_path / "out", "pt") as file:
        assert torch.equal(file.get_tensor("w"), expected)
    damaged = Path(shutil.copytree(path, tmp_path / path.name))
    raw = bytearray((damaged / "rank1.safetensors").read_bytes())
    raw[-1] ^= 1
    (damaged / "rank1.safetensors").write_bytes(raw)
    with pytest.raises(Damaged, match=r"rank1\.safetensors does not match its digest"):
        store.verify(damaged)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_other_programs_read_the_files(tmp_path: Path) -> None:
    """safetensors reads each file, and torch's reader of such folders puts the boxes of all files together."""
    model = {"w": W, **OTHERS}
    path = _written(tmp_path, {"model": model}, 2)
    keys = []
    for rank in range(2):
        with safetensors.safe_open(path / f"rank{rank}.safetensors", "pt") as file:
            keys += [key for key in list(file.keys()) if not key.startswith("rank")]
    assert len(keys) > len(set(keys)) == 4, "whole names are the keys, also of tensors that two ranks share"

    into = {f"model/{name}": torch.full_like(value, 9) for name, value in model.items()}
    load_dcp(into, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    assert same(into, {f"model/{name}": value.contiguous() for name, value in model.items()})


@pytest.mark.parametrize(
    "change",
    [
        lambda boxes: boxes[0]["at"].__setitem__(0, 1),
        lambda boxes: boxes[0]["size"].__setitem__(0, 3),
        lambda boxes: boxes[0]["size"].__setitem__(0, 0),
        lambda boxes: boxes.pop(),
        lambda boxes: boxes.append(dict(boxes[0])),
        lambda boxes: boxes.append({"file": 1, "at": [0, 0], "size": [0, 6]}),
        lambda boxes: boxes[0].update(file=1),
        lambda boxes: boxes[1].update(at=[3, 0]),
        lambda boxes: boxes[0].update(at=[-1, 0], size=[3, 6]),
        lambda boxes: boxes[0].update(at=[0], size=[2]),
        lambda boxes: boxes[0].update(file=7),
    ],
)
def test_boxes_that_cannot_be_are_damage(tmp_path: Path, change: Callable[[Any], object]) -> None:
    """They overlap, leave a gap, lie outside, are empty, or are twice in a file."""
    path = _written(tmp_path, {"model": {"w": W}}, 2)
    _with(path, lambda body: change(body["tensors"]["model/w"]["boxes"]))
    with pytest.raises(Damaged, match="not a manifest"):
        store.load_manifest(path)


def test_boxes_that_are_another_file_s_do_not_fit(tmp_path: Path) -> None:
    """Two boxes of one size, exchanged in the manifest: each file says where its box lies, so nothing is mixed up."""
    path = _written(tmp_path, {"model": {"w": W}}, 2)

    def exchange(body: Any) -> None:
        first, second = body["tensors"]["model/w"]["boxes"]
        first["file"], second["file"] = second["file"], first["file"]

    _with(path, exchange)
    with pytest.raises(Misfit, match="from"):
        load(path, 0)
    with pytest.raises(CheckpointError):
        export_safetensors(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _blocks(folder: Path) -> tuple[Path, torch.Tensor]:
    """A checkpoint of one rank and of four blocks."""
    big = torch.arange(3 * BLOCK // 4, dtype=torch.int32).reshape(3, 1024, -1)
    return _written(folder, {"big": big}, 1), big


def test_a_rank_proves_what_it_reads(tmp_path: Path) -> None:
    """A flipped bit is found by those who need its block, and by verify; blocks that are exchanged are found too. The
    block with the header is always proved."""
    path, big = _blocks(tmp_path)
    file = path / "rank0.safetensors"
    assert len(store.load_manifest(path).files["rank0.safetensors"].blocks) == 4

    def part(first: int) -> torch.Tensor:
        class Part:
            box = Box((first, 7, 3), (1, 100, 50))

            def made(self, local: torch.Tensor) -> torch.Tensor:
                return local

        found: torch.Tensor = load(path, 0, 1, lambda manifest: {"big": Part()}).shared["big"]
        return found

    whole = bytearray(file.read_bytes())
    for number in range(3):
        assert torch.equal(part(number), big[number : number + 1, 7:107, 3:53])
    changed = whole.copy()
    changed[2 * BLOCK + BLOCK // 2] ^= 16
    file.write_bytes(changed)
    assert torch.equal(part(0), big[:1, 7:107, 3:53])
    for look in (lambda: part(2), lambda: load(path, 0), lambda: store.verify(path)):
        with pytest.raises(Damaged, match="does not match its digest"):
            look()
    changed = whole.copy()
    changed[BLOCK : 2 * BLOCK], changed[2 * BLOCK : 3 * BLOCK] = whole[2 * BLOCK : 3 * BLOCK], whole[BLOCK : 2 * BLOCK]
    file.write_bytes(changed)
    for look in (lambda: part(1), lambda: store.verify(path)):
        with pytest.raises(Damaged, match="does not match its digest"):
            look()
    changed = whole.copy()
    changed[100] ^= 1
    file.write_bytes(changed)
    with pytest.raises(Damaged):
        part(2)
