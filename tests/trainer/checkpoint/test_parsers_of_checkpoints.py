"""Checkpoints and snapshots of any content: their readers give them whole, or say Damaged or Unreadable, in one line.

Where a digest would reject all that was mangled, it is made anew: what is behind it must not trust it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.run.checkpoints import age_of, described
from tests.support.jobs import same, state_of, write
from tests.support.mangled import VALUES, as_json, bounded, files, is_one_line, mangled, values
from tests.support.snapshots import snapshot_of
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.checkpoint.disk import store
from trainer.checkpoint.disk.flush import flush
from trainer.checkpoint.disk.restore import Tiers, load, recall, restore
from trainer.checkpoint.errors import CheckpointError, CheckpointMismatch, Damaged, Misfit, Unreadable
from trainer.checkpoint.format import manifest
from trainer.checkpoint.format.manifest import Manifest
from trainer.checkpoint.format.shard import Digest
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.memory import board as boards
from trainer.checkpoint.memory import snapshots
from trainer.checkpoint.memory.board import Board, Record
from trainer.checkpoint.transfer.safetensors_files import export_safetensors
from trainer.rundir.files.durable import DISK
from trainer.rundir.machine.shm import board_path, buffer_path

SLOW = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
FAST = settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (1, 2):
        write(folder, step)
    return folder


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The snapshot of step 3 of two ranks."""
    folder = tmp_path_factory.mktemp("segment") / "supervise-m"
    snapshot_of(folder, 3)
    yield folder
    snapshots.remove(folder)


def _sealed(body: bytes) -> bytes:
    """A manifest of that body with a digest that is right."""
    return body[:-1] + b',"digest":"%s"}\n' % xxhash.xxh3_128_hexdigest(body[:-1]).encode()


def _body(path: Path) -> Any:
    body = json.loads((path / "manifest.json").read_bytes())
    del body["digest"]
    return body


@st.composite
def manifests(draw: st.DrawFn, path: Path) -> bytes:
    if draw(st.booleans()):
        return draw(mangled((path / "manifest.json").read_bytes()))
    return _sealed(as_json(draw(values(_body(path)))))


@pytest.mark.parametrize("number", ["Infinity", "NaN", "1e999"])
def test_a_manifest_with_a_number_that_is_none(origin: Path, number: str) -> None:
    """No save writes one: such a manifest is damaged."""
    body = {**_body(origin / "step-00000002"), "save_seconds": 123.25}
    raw = as_json(body).replace(b"123.25", number.encode())
    with pytest.raises(Damaged, match="no finite number"):
        manifest.decode(_sealed(raw))


@SLOW
@given(data=st.data())
def test_manifests(data: st.DataObject, origin: Path) -> None:
    """A Manifest that can be described, encoded again and relied on, or Damaged or Unreadable."""
    raw = data.draw(manifests(origin / "step-00000002"))
    try:
        with bounded():
            found = manifest.decode(raw)
    except (Damaged, Unreadable) as error:
        assert is_one_line(error)
        return
    assert isinstance(found, Manifest)
    assert manifest.decode(manifest.encode(found)).step == found.step
    listed = store.Listed(found.step, origin, found, None)
    described(listed)
    age_of(listed)


@SLOW
@given(data=st.data())
def test_a_checkpoint_with_any_manifest(
    data: st.DataObject, origin: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also under a digest that is right: it is loaded whole, or passed over for the one before it. Never step 0, never
    a part of it, and no export of it."""
    folder = tmp_path_factory.getbasetemp() / "any"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(origin, folder)
    newest = folder / "step-00000002"
    (newest / "manifest.json").write_bytes(data.draw(manifests(newest)))
    for read in (
        store.check,
        store.verify,
        lambda path: load(path, 0),
        lambda path: export_safetensors(path, folder / "out"),
    ):
        with bounded():
            try:
                read(newest)
            except CheckpointError as error:
                assert isinstance(error, Damaged | Unreadable) or "holds no model" in str(error)
    with bounded():
        loaded = restore(Tiers(folder), "auto", Ranks(), DISK)
    assert loaded is not None
    assert loaded.name in ("step-00000001", "step-00000002")
    assert loaded.name == "step-00000002" or same(loaded.shared, state_of(1))


def _put_shard(checkpoint: Path, raw: bytes, known: bool) -> None:
    """`raw` is the file of rank 0, and if `known` the manifest says so."""
    (checkpoint / "rank0.safetensors").write_bytes(raw)
    body = _body(checkpoint)
    digest = Digest()
    digest.add(raw)
    if known:
        body["files"]["rank0.safetensors"] = asdict(digest.stored())
    (checkpoint / "manifest.json").write_bytes(_sealed(as_json(body)))


@SLOW
@given(data=st.data())
def test_a_shard_of_any_bytes(data: st.DataObject, origin: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The file of a rank, with the manifest made to fit it: read, or Damaged, or a Misfit."""
    folder = tmp_path_factory.getbasetemp() / "shard"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(origin, folder)
    newest = folder / "step-00000002"
    raw = (newest / "rank0.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    if data.draw(st.booleans()):
        head = as_json(data.draw(values(json.loads(raw[8 : 8 + length]))))
        raw = len(head).to_bytes(8, "little") + head + raw[8 + length :]
    else:
        raw = data.draw(mangled(raw))
    _put_shard(newest, raw, known=bool(data.draw(st.integers(0, 3))))
    with bounded():
        try:
            load(newest, 0)
        except Misfit:
            # Every byte is as its digest says, and a tensor is missing: not damage, and nothing is put aside.
            with pytest.raises(CheckpointMismatch, match="it is not damaged"):
                restore(Tiers(folder), "auto", Ranks(), DISK)
            return
        except (Damaged, Unreadable) as error:
            assert str(error)
        loaded = restore(Tiers(folder), "auto", Ranks(), DISK)
    assert loaded is not None
    assert loaded.name == "step-00000002" or same(loaded.shared, state_of(1))


@FAST
@given(data=st.data())
def test_latest(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A step, or None."""
    folder = tmp_path_factory.getbasetemp()
    (folder / "latest").write_bytes(data.draw(mangled(b"step-00000040\n")))
    step = store.read_latest(folder)
    assert step is None or step >= 0


# ── shared memory ─────────────────────────────────────────────────────────────────────────────────────────────────────


@FAST
@given(
    words=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 5), min_size=8, max_size=8),
    flip=st.none() | st.integers(0, 79),
)
def test_records(words: list[int], flip: int | None) -> None:
    """A record as it was written, or none: with a bit flipped, or of numbers that cannot be."""
    raw = bytearray(Record(*words).encode())
    if flip is not None:
        raw[flip] ^= 4
    found = boards.decode(bytes(raw))
    assert found == (Record(*words) if flip is None and min(words) >= 0 else None)


def test_a_record_cut_off_anywhere_among_its_words() -> None:
    """A death in the middle of the copy of a record: of its ten words any may be new and any old, whether the old ones
    are zeros or another record. It is the old, the new, or none."""
    old, new = Record(7, 0, 3, 2, 0, 100, 10, 1).encode(), Record(7, 0, 5, 2, 0, 100, 10, 2).encode()
    zeros, size = bytes(len(new)), len(new) // 8
    assert size == 10
    for before, after, may in ((zeros, new, {None, 5}), (old, zeros, {None, 3}), (old, new, {None, 3, 5})):
        for chosen in range(1 << size):
            parts = [(after if chosen >> word & 1 else before)[word * 8 : word * 8 + 8] for word in range(size)]
            record = boards.decode(b"".join(parts))
            assert (record.step if record else None) in may


@SLOW
@given(data=st.data())
def test_boards_and_sidecars(data: st.DataObject, segment: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A segment of any content: the newest snapshot is restored whole, or is Damaged; a flush of it makes a checkpoint
    that verifies, or an error in one line."""
    place = tmp_path_factory.getbasetemp() / segment.name
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(segment, place)
    board, (slot, record) = board_path(place, 0), next(iter(Board(board_path(place, 0)).records().items()))
    buffer = buffer_path(place, 0, slot)
    match data.draw(st.sampled_from(("board", "record", "sidecar", "header", "short"))):
        case "board":
            board.write_bytes(data.draw(mangled(board.read_bytes())))
        case "record":
            fields = {f: getattr(record, f) for f in Record.__slots__}
            name = data.draw(st.sampled_from(list(fields)))
            fields[name] = data.draw(st.sampled_from([0, 1, 2, 100, 2**20, 2**31, 2**62, -1, -5]))
            Board(board).put(slot, Record(**fields).encode())
        case "sidecar":
            raw = buffer.read_bytes()
            about = json.loads(raw[record.payload : record.payload + record.sidecar])
            new = data.draw(files(about) | values(about).map(as_json))[: record.sidecar].ljust(record.sidecar)
            buffer.write_bytes(raw[: record.payload] + new + raw[record.payload + record.sidecar :])
        case "header":
            raw = bytearray(buffer.read_bytes())
            at = data.draw(st.integers(0, 4000))
            raw[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
            buffer.write_bytes(raw)
        case "short":
            os.truncate(buffer, data.draw(st.integers(0, buffer.stat().st_size)))
    with bounded():
        found = snapshots.find(place)
        if found is None:
            return
        for rank in range(2):
            try:
                recall(place, found.step, "run", rank)
            except (Damaged, Unreadable, OSError) as error:
                assert str(error)
        out = tmp_path_factory.getbasetemp() / "flushed"
        shutil.rmtree(out, ignore_errors=True)
        outcome = flush(place, out, None, 3, None)
    if "error" in outcome:
        assert "\n" not in outcome["error"]
    else:
        assert store.verify(out / f"step-{outcome['step']:08d}")


def test_words_of_a_board_are_written_whole(segment: Path, tmp_path: Path) -> None:
    """Pins and `passed` are read by other processes at any moment: a store is one of eight bytes, as beats have it."""
    board = Board.create(tmp_path / "rank0")
    board.go_past(3, 700)
    assert board.passed(3) == 700
    assert board.passed(2) == -1
    board.pin("b", 9)
    assert board.pins() == {"b": {9}}
    raw = (tmp_path / "rank0").read_bytes()
    assert struct.unpack_from("<q", raw, 128 + 120) == (10,)
    assert struct.unpack_from("<q", raw, 3 * 128) == (4 << 40 | 700,)


# ── one file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(parent=SLOW, max_examples=80)
@given(data=st.data())
def test_save_checkpoint_files(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also under a digest that is right, and with any values inside: loaded, or Damaged or CheckpointMismatch."""
    path = tmp_path_factory.getbasetemp() / "model.pt"
    model = torch.nn.Linear(2, 2)
    save_checkpoint(path, model, torch.optim.SGD(model.parameters(), lr=0.1), 7, extra={"a": 1})
    if data.draw(st.booleans()):
        state = data.draw(
            values({"model": {"weight": [1.0]}, "step": 7, "extra": None, "scaler": None, "optimizer": {}})
        )
        torch.save(state, path)
        raw = path.read_bytes()[:-2]
    else:
        raw = data.draw(mangled(path.read_bytes()[:-43]))
    seal = b"xxh3-128:" + xxhash.xxh3_128_hexdigest(raw).encode()
    path.write_bytes(raw + len(seal).to_bytes(2, "little") + seal)
    with bounded():
        try:
            load_checkpoint(path, torch.nn.Linear(2, 2))
        except (Damaged, CheckpointMismatch) as error:
            assert str(error)


@SLOW
@given(VALUES, st.integers(0, 3))
def test_a_state_of_any_values(value: Any, where: int) -> None:
    """tree.decode() of whatever JSON gives what encode() took, or the errors that a restore knows."""
    from trainer.checkpoint.state import tree

    wrapped = [value, {"$tuple": value}, {"$dict": value}, {"$int": value}][where]
    try:
        tree.decode(wrapped)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        assert isinstance(error, Exception)


def test_half_a_surrogate_pair_in_a_header(origin: Path, tmp_path: Path) -> None:
    """JSON may hold what no file and no terminal takes: the checkpoint is put aside all the same, with its reason."""
    folder = Path(shutil.copytree(origin, tmp_path / "shard"))
    newest = folder / "step-00000002"
    raw = (newest / "rank0.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["model/w"]["shape"] = "\ud800"
    head = json.dumps(header).encode()
    raw = len(head).to_bytes(8, "little") + head + raw[8 + length :]
    _put_shard(newest, raw, known=True)

    loaded = restore(Tiers(folder), "auto", Ranks(), DISK)
    assert loaded is not None and loaded.name == "step-00000001"
    assert "model/w" in (folder / "quarantine" / "step-00000002-1.txt").read_text()
