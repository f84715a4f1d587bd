"""The manifest: a list of the parts of a checkpoint, with digests that prove that no part has changed.

    {"format":2,"step":40,…,"state":{…},"tensors":{name:{dtype,shape,boxes}},"files":{name:{bytes,block,blocks}},"digest":"…"}
    '--------------------------- the digest covers these bytes as they stand ---------------------------'

The digests of a file's blocks cover all its bytes. The manifest's own digest covers the rest of the manifest. So one
flipped bit anywhere is found, and who needs a part of a file can prove that part.

Format 1 is read, too: a tensor was cut anywhere, so its pieces are runs of the flattened tensor, and a file is one
block.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from ..errors import Damaged, StateError, Unreadable
from .boxes import Box, check_cover
from .plan import ITEM_BYTES, Layout, Spec

FORMAT = 2
NAME = "manifest.json"
LARGEST = 256 << 20
"""The largest manifest that is written and read, in bytes."""
BLOCK = 16 << 20

_TAIL = re.compile(rb',"digest":"([0-9a-f]{32})"}\n\Z')
_TAIL_BYTES = len(b',"digest":""}\n') + 32
_HEX = re.compile(r"[0-9a-f]{32}\Z")


def shard_name(rank: int) -> str:
    """The name of the file that `rank` writes."""
    return f"rank{rank}.safetensors"


def rank_of(name: str) -> int:
    """The rank that writes the file `name`."""
    return int(name.removeprefix("rank").removesuffix(".safetensors"))


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor. It is in `file` under `key`."""

    file: str
    key: str
    box: Box


@dataclass(frozen=True, slots=True)
class StoredTensor:
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    placements: tuple[str, ...] = ()
    """How it lay on its mesh, if it was a DTensor: for people."""
    flat: bool = False
    """Whether the boxes are those of the flattened tensor, as in format 1."""

    @property
    def spec(self) -> Spec:
        return Spec(self.dtype, self.shape)

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape of which the pieces are boxes."""
        return (math.prod(self.shape),) if self.flat else self.shape


@dataclass(frozen=True, slots=True)
class StoredFile:
    bytes: int
    block: int = BLOCK
    blocks: tuple[str, ...] = ()
    """The XXH3-128 of each block of `block` bytes, 32 hex digits; the last block may be shorter. None in memory."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint. `state` is the nested state as tree.encode() made it; `created` is UTC, ISO 8601."""

    step: int
    world_size: int
    run: str | None
    attempt: int | None
    torch: str
    created: str
    save_seconds: float
    bytes: int
    state: Any
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, StoredFile]
    digest: str = ""


_PLAIN = ("step", "world_size", "run", "attempt", "torch", "created", "save_seconds", "bytes", "state")


def table(layout: Layout) -> dict[str, Any]:
    """The tensors of `layout` as they stand in a manifest."""
    found: dict[str, Any] = {
        name: {"dtype": spec.dtype, "shape": spec.shape, "boxes": []} for name, spec in layout.specs.items()
    }
    for rank, own in enumerate(layout.shares):
        for share in own:
            found[share.name]["boxes"].append({"file": rank, "at": share.box.at, "size": share.box.size})
    for name, placements in layout.placements.items():
        found[name]["placements"] = placements
    return found


def tensors_of(table: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The tensors that table() described. ValueError, KeyError or TypeError if it did not."""
    return {
        str(name): StoredTensor(
            t["dtype"],
            _counts(t["shape"]),
            tuple(
                Piece(shard_name(_count(box["file"])), str(name), Box(_counts(box["at"]), _counts(box["size"])))
                for box in t["boxes"]
            ),
            tuple(map(str, t.get("placements", ()))),
        )
        for name, t in table.items()
    }


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json. StateError if no reader would take so many."""
    tensors = {
        name: {
            "dtype": stored.dtype,
            "shape": stored.shape,
            "boxes": [{"file": rank_of(p.file), "at": p.box.at, "size": p.box.size} for p in stored.pieces],
            **({"placements": stored.placements} if stored.placements else {}),
        }
        for name, stored in manifest.tensors.items()
    }
    files = {
        name: {"bytes": file.bytes, "block": file.block, "blocks": file.blocks} for name, file in manifest.files.items()
    }
    plain = {key: getattr(manifest, key) for key in _PLAIN}
    body = {"format": FORMAT, **plain, "tensors": tensors, "files": files}
    raw = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()[:-1]
    if len(raw) > LARGEST - _TAIL_BYTES:
        raise StateError(
            f"the state takes {len(raw)} bytes of text beside its tensors, and {NAME} holds {LARGEST}: long lists of "
            "numbers, texts and bytes belong into tensors"
        )
    return raw + b',"digest":"%s"}\n' % xxhash.xxh3_128_hexdigest(raw).encode()


def decode(raw: bytes) -> Manifest:
    """The manifest in `raw`. Damaged if a bit of it has changed; Unreadable if a newer version wrote it."""
    tail = _TAIL.search(raw[-_TAIL_BYTES:])
    if not tail:
        raise Damaged(f"{NAME} is cut short or overwritten: it does not end with its digest")
    if xxhash.xxh3_128_hexdigest(raw[:-_TAIL_BYTES]).encode() != tail[1]:
        raise Damaged(f"{NAME} does not match its digest")
    try:
        body = json.loads(raw, parse_float=_finite, parse_constant=_finite)
        if (version := _count(body["format"])) > FORMAT:
            raise Unreadable(f"{NAME} has format {version}; this version reads formats 1 to {FORMAT}")
        manifest = _build(body)
        check(manifest)
        if not all(_is_digested(file) for file in manifest.files.values()):
            raise ValueError("a file has no digest for each of its blocks")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(f"{NAME} is not a manifest: {error!r}") from None
    return manifest


def _finite(text: str) -> float:
    """The number, which encode() can write again. ValueError for an infinity, also as 1e999, and for NaN."""
    if math.isfinite(value := float(text)):
        return value
    raise ValueError(f"{text} is no finite number")


def _build(body: dict[str, Any]) -> Manifest:
    first = body["format"] == 1
    return Manifest(
        **{key: body[key] for key in _PLAIN},
        tensors=_flat_tensors(body["tensors"]) if first else tensors_of(body["tensors"]),
        files={str(name): _file_1(file) if first else _file(file) for name, file in body["files"].items()},
        digest=body["digest"],
    )


def _file(file: Mapping[str, Any]) -> StoredFile:
    return StoredFile(file["bytes"], file["block"], tuple(file["blocks"]))


def _file_1(file: Mapping[str, Any]) -> StoredFile:
    return StoredFile(file["bytes"], max(1, _count(file["bytes"])), (file["digest"],))


def _flat_tensors(table: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """The tensors of format 1. Their pieces come in order."""
    found = {}
    for name, t in table.items():
        pieces, at = [], 0
        for piece in t["pieces"]:
            if not isinstance(piece["file"], str) or not isinstance(piece["key"], str) or _count(piece["start"]) != at:
                raise ValueError(f"tensor {name!r} has a piece out of place")
            if _count(piece["count"]) or not math.prod(_counts(t["shape"])):
                pieces.append(Piece(piece["file"], piece["key"], Box((at,), (piece["count"],))))
            at += piece["count"]
        found[str(name)] = StoredTensor(t["dtype"], _counts(t["shape"]), tuple(pieces), flat=True)
    return found


def _count(value: object) -> int:
    if type(value) is int and 0 <= value < 1 << 62:
        return value
    raise ValueError(f"a {type(value).__name__} is no count")


def _counts(values: Sequence[object]) -> tuple[int, ...]:
    if not isinstance(values, list | tuple):
        raise ValueError(f"a {type(values).__name__} is no list of counts")
    return tuple(map(_count, values))


def _is_digested(file: StoredFile) -> bool:
    if _count(file.block) < 1 or len(file.blocks) != -(-file.bytes // file.block):
        return False
    return all(isinstance(text, str) and _HEX.match(text) for text in file.blocks)


def check(manifest: Manifest) -> None:
    """ValueError unless every field has its type, the files are those of ranks 0 to world_size - 1, and the pieces
    cover each tensor once."""
    for number in (manifest.step, manifest.world_size, manifest.bytes, *(f.bytes for f in manifest.files.values())):
        _count(number)
    if not isinstance(manifest.torch, str) or not isinstance(manifest.created, str):
        raise ValueError("a text has another type")
    if not isinstance(manifest.run, str | None) or not isinstance(manifest.attempt, int | None):
        raise ValueError("the run or the attempt has another type")
    if not isinstance(manifest.save_seconds, int | float):
        raise ValueError("the time is not a number")
    if manifest.world_size != len(manifest.files) or not manifest.files:
        raise ValueError(f"{len(manifest.files)} files cannot be those of {manifest.world_size} ranks")
    # Names are only compared, never used as paths: no text in a manifest can lead out of its folder.
    if set(manifest.files) != {shard_name(rank) for rank in range(manifest.world_size)}:
        raise ValueError(f"files are not those of {manifest.world_size} ranks")
    room = {name: file.bytes for name, file in manifest.files.items()}
    for name, tensor in manifest.tensors.items():
        _check_tensor(name, tensor, room)
    if min(room.values()) < 0:
        raise ValueError("the tensors are larger than the files that should hold them")


def _check_tensor(name: str, tensor: StoredTensor, room: dict[str, int]) -> None:
    """`room`: the bytes that are left in each file. It becomes less by what is in them of `tensor`."""
    if tensor.dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {name!r} has no proper type")
    files = [piece.file for piece in tensor.pieces]
    if not set(files) <= room.keys() or (not tensor.flat and len(set(files)) != len(files)):
        raise ValueError(f"tensor {name!r} is in no such file, or twice in one")
    try:
        check_cover([piece.box for piece in tensor.pieces], tensor.grid)
    except ValueError as error:
        raise ValueError(f"tensor {name!r}: {error}") from None
    for piece in tensor.pieces:
        room[piece.file] -= piece.box.volume * ITEM_BYTES[tensor.dtype]
