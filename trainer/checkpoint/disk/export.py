"""The model of a checkpoint as one safetensors file, for other programs. Needs no torch.

The file is laid out first and mapped. The pieces of the model go from the ranks' files straight to their places, so a
model may be larger than memory. They are digested on the way, so a damaged checkpoint is never exported.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...rundir.files.durable import DISK
from ..errors import CheckpointError, Damaged, Misfit
from ..format.boxes import runs
from ..format.manifest import Manifest, Piece, StoredTensor
from ..format.plan import ITEM_BYTES
from ..format.shard import Entry, Take, header, misfit
from ..state import tree
from . import store


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
    manifest = store.check(path)
    try:
        keys, others = model_tensors(manifest)
        specs = {key: manifest.tensors[name].spec for key, name in keys.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"its state cannot be decoded: {error!r}") from None
    # Wide elements come first: then every tensor is aligned.
    entries = [Entry(key, specs[key]) for key in sorted(specs, key=lambda key: -ITEM_BYTES[specs[key].dtype])]
    head = header(entries, {"format": "pt", "step": str(manifest.step)})
    with written_aside(out) as temporary:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            # A full disk must raise OSError here. Later it would be a SIGBUS, while the mapping is filled.
            os.posix_fallocate(fd, 0, len(head) + sum(entry.spec.bytes for entry in entries))
            # Not closed here: if anything goes wrong, its traceback may still have parts of it.
            memory = mmap.mmap(fd, 0)
            memory[: len(head)] = head
            _fill(path, manifest, keys, _places(entries, len(head)), memoryview(memory))
        finally:
            os.close(fd)
    return others


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
