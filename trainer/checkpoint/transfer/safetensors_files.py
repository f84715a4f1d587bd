"""The model of a checkpoint as one safetensors file, or as a folder of them as Hugging Face has it. Needs no torch.

A file is laid out first and mapped. The pieces of the model go from the ranks' files straight to their places, so a
model may be larger than memory. They are digested on the way, so a damaged checkpoint is never exported.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...rundir.files.durable import DISK, replace_file
from ..disk import store
from ..errors import CheckpointError, Damaged, Misfit
from ..format.boxes import runs
from ..format.manifest import Manifest, Piece, StoredTensor
from ..format.plan import ITEM_BYTES
from ..format.shard import Entry, Take, header, misfit
from ..state import tree


@contextlib.contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A path beside `out` to write to. After the block that file is `out`, durably. If the block failed, it is
    removed."""
    temporary = out.with_name(f".{out.name}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        yield temporary
        fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
        try:
            DISK.fsync(fd, temporary)
        finally:
            os.close(fd)
        DISK.rename(temporary, out)
        DISK.sync_dir(out.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write to. After the block it is `out`, durably. If the block failed, it is
    removed."""
    temporary = out.with_name(f".{out.name}.tmp-{uuid.uuid4().hex[:12]}")
    temporary.mkdir()
    try:
        yield temporary
        DISK.sync_dir(temporary)
        DISK.rename(temporary, out)
        DISK.sync_dir(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Name(str):
    """The name of a tensor, as a type, to tell it from other text."""


def model_tensors(manifest: Manifest) -> tuple[dict[str, str], list[str]]:
    """(tensors, others): the model's keys with the names of their tensors, and the keys that are not tensors.

    CheckpointError if the checkpoint holds no model.
    """
    model = manifest.state.get("model") if isinstance(manifest.state, dict) else None
    try:
        found = tree.decode(model, _Name)
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"its state cannot be decoded: {error!r}") from None
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"checkpoint {manifest.step} holds no model")
    tensors = {str(key): str(name) for key, name in found.items() if isinstance(name, _Name)}
    if not set(tensors.values()) <= manifest.tensors.keys():
        raise Damaged("its state names a tensor that it does not have")
    return tensors, [str(key) for key in found if str(key) not in tensors]


def export_safetensors(path: Path, out: Path) -> list[str]:
    """`out` holds the model of the checkpoint `path`, every byte verified. Returns the keys that are left out because
    they are not tensors. Damaged, Unreadable or OSError; then there is no `out`."""
    manifest, keys, others = model_of(path)
    _write(path, manifest, keys, out)
    return others


def export_hf(path: Path, out: Path, largest: int = 5 << 30) -> list[str]:
    """The folder `out` holds the model of the checkpoint `path` in files of about `largest` bytes, with an index if
    there are several. Otherwise as export_safetensors()."""
    manifest, keys, others = model_of(path)
    groups: list[dict[str, str]] = [{}]
    size = 0
    for key, name in keys.items():
        count = manifest.tensors[name].spec.bytes
        if groups[-1] and size + count > largest:
            groups.append({})
            size = 0
        groups[-1][key] = name
        size += count
    names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    with folder_aside(out) as folder:
        if len(groups) == 1:
            _write(path, manifest, keys, folder / "model.safetensors")
            return others
        for name, group in zip(names, groups, strict=True):
            _write(path, manifest, group, folder / name)
        total = sum(manifest.tensors[name].spec.bytes for name in keys.values())
        places = {key: name for name, group in zip(names, groups, strict=True) for key in group}
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)
        replace_file(folder / "model.safetensors.index.json", index.encode(), DISK)
    return others


def model_of(path: Path) -> tuple[Manifest, dict[str, str], list[str]]:
    """The manifest of the checkpoint `path`, its model, and the keys in it that are no tensors (see model_tensors)."""
    manifest = store.check(path)
    try:
        return manifest, *model_tensors(manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"its state cannot be decoded: {error!r}") from None


def _write(path: Path, manifest: Manifest, keys: Mapping[str, str], out: Path) -> None:
    """`out` has the tensors `keys` (of what names) of the checkpoint `path`, every byte verified."""
    with written_aside(out) as temporary:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fill(fd, path, manifest, keys)
        finally:
            os.close(fd)


def fill(fd: int, path: Path, manifest: Manifest, keys: Mapping[str, str]) -> None:
    """The new file `fd` has the tensors `keys` (of what names) of the checkpoint `path`, every byte verified; it is not
    durable."""
    specs = {key: manifest.tensors[name].spec for key, name in keys.items()}
    # Wide elements come first: then every tensor is aligned.
    entries = [Entry(key, specs[key]) for key in sorted(specs, key=lambda key: -ITEM_BYTES[specs[key].dtype])]
    head = header(entries, {"format": "pt", "step": str(manifest.step)})
    # A full disk must raise OSError here. Later it would be a SIGBUS, while the mapping is filled.
    os.posix_fallocate(fd, 0, len(head) + sum(entry.spec.bytes for entry in entries))
    # Not closed here: if anything goes wrong, its traceback may still have parts of it.
    memory = mmap.mmap(fd, 0)
    memory[: len(head)] = head
    _fill(path, manifest, keys, _places(entries, len(head)), memoryview(memory))


def _places(entries: list[Entry], at: int) -> dict[str, slice]:
    places = {}
    for entry in entries:
        places[entry.key] = slice(at, at + entry.spec.bytes)
        at += entry.spec.bytes
    return places


def _takes(stored: StoredTensor, piece: Piece, whole: memoryview) -> Iterator[Take]:
    """The bytes of `piece`, each in its place in the `whole` tensor."""
    size, at = ITEM_BYTES[stored.dtype], 0
    for first, count in runs(piece.box, stored.grid):
        yield at, whole[first * size : (first + count) * size]
        at += count * size


def _fill(
    path: Path, manifest: Manifest, keys: Mapping[str, str], places: Mapping[str, slice], view: memoryview
) -> None:
    first: dict[str, str] = {}
    for key, name in keys.items():
        first.setdefault(name, key)
    homes = {
        (piece.file, piece.key): (manifest.tensors[name], piece, places[key].start)
        for name, key in first.items()
        for piece in manifest.tensors[name].pieces
    }
    problems: list[str] = []
    for file in manifest.files:

        def sink(entry: Entry, file: str = file) -> Sequence[Take]:
            if (home := homes.pop((file, entry.key), None)) is None:
                return ()
            stored, piece, start = home
            if problem := misfit(piece, stored, entry):
                problems.append(problem)
                return ()
            return list(_takes(stored, piece, view[start : start + stored.spec.bytes]))

        store.read_file(path, manifest, file, sink, everything=True)
    problems += [str(misfit(piece, stored, None)) for stored, piece, _ in homes.values()]
    if problems:
        raise Misfit(problems[0])
    for key, name in keys.items():
        # Tied weights are stored once. Each of their names is exported.
        if first[name] != key:
            view[places[key]] = view[places[first[name]]]
