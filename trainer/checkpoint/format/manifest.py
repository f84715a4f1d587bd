"""The manifest: a list of the parts of a checkpoint, with digests that prove that no part has changed.

    {"format":1,"step":40,…,"state":{…},"tensors":{name:{dtype,shape,pieces}},"files":{name:{bytes,digest}},"digest":"…"}
    '------------------------- the digest covers these bytes as they stand -------------------------'

A file's digest covers all its bytes. The manifest's own digest covers the rest of the manifest. So one flipped bit
anywhere is found.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

import xxhash

from ..errors import Damaged, Unreadable
from .plan import ITEM_BYTES, Shares, Spec

FORMAT = 1
NAME = "manifest.json"

_TAIL = re.compile(rb',"digest":"([0-9a-f]{32})"}\n\Z')
_TAIL_BYTES = len(b',"digest":""}\n') + 32


def shard_name(rank: int) -> str:
    """The name of the file that `rank` writes."""
    return f"rank{rank}.safetensors"


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` elements of a flattened tensor, from element `start` on. They are in `file` under `key`."""

    file: str
    key: str
    start: int
    count: int


_PIECE = (str, str, int, int)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def spec(self) -> Spec:
        return Spec(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class StoredFile:
    bytes: int
    digest: str
    """XXH3-128, 32 hex digits."""


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


def stored(specs: Mapping[str, Spec], shares: Shares) -> dict[str, StoredTensor]:
    """Where each tensor is, after each rank has written its shares."""
    pieces: dict[str, list[Piece]] = {name: [] for name in specs}
    for rank, own in enumerate(shares):
        for share in own:
            pieces[share.name].append(Piece(shard_name(rank), share.key(specs[share.name]), share.start, share.count))
    return {name: StoredTensor(spec.dtype, spec.shape, tuple(pieces[name])) for name, spec in specs.items()}


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json."""
    body = {"format": FORMAT, **asdict(manifest)}
    del body["digest"]
    raw = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()[:-1]
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
        if body["format"] != FORMAT:
            raise Unreadable(f"{NAME} has format {body['format']}; this version reads format {FORMAT}")
        manifest = _build(body)
        check(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(f"{NAME} is not a manifest: {error!r}") from None
    return manifest


def _finite(text: str) -> float:
    """The number, which encode() can write again. ValueError for an infinity, also as 1e999, and for NaN."""
    if math.isfinite(value := float(text)):
        return value
    raise ValueError(f"{text} is no finite number")


def _build(body: dict[str, Any]) -> Manifest:
    fields = {key: body[key] for key in Manifest.__slots__}
    tensors = {
        str(name): StoredTensor(t["dtype"], tuple(t["shape"]), tuple(Piece(**piece) for piece in t["pieces"]))
        for name, t in body["tensors"].items()
    }
    files = {str(name): StoredFile(**file) for name, file in body["files"].items()}
    return Manifest(**{**fields, "tensors": tensors, "files": files})


def is_proper(spec: Spec) -> bool:
    """Whether a tensor of that type and shape can exist."""
    return spec.dtype in ITEM_BYTES and all(_is_count(n) for n in spec.shape)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def check(manifest: Manifest) -> None:
    """ValueError unless every field has its type, the files are those of ranks 0 to world_size - 1, and the pieces
    cover each tensor once, in order."""
    counts = (manifest.step, manifest.world_size, manifest.bytes, *(file.bytes for file in manifest.files.values()))
    texts = (manifest.torch, manifest.created, *(file.digest for file in manifest.files.values()))
    if not all(map(_is_count, counts)) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a number or a text has another type")
    if not isinstance(manifest.run, str | None) or not isinstance(manifest.attempt, int | None):
        raise ValueError("the run or the attempt has another type")
    if not isinstance(manifest.save_seconds, int | float):
        raise ValueError("the time is not a number")
    if manifest.world_size != len(manifest.files) or not manifest.files:
        raise ValueError(f"{len(manifest.files)} files cannot be those of {manifest.world_size} ranks")
    # Names are only compared, never used as paths: no text in a manifest can lead out of its folder.
    if set(manifest.files) != {shard_name(rank) for rank in range(manifest.world_size)}:
        raise ValueError(f"files are not those of {manifest.world_size} ranks")
    room = sum(file.bytes for file in manifest.files.values())
    for name, tensor in manifest.tensors.items():
        if not is_proper(tensor.spec):
            raise ValueError(f"tensor {name!r} has no proper type or shape")
        at = 0
        for piece in tensor.pieces:
            if any(type(part) is not kind for part, kind in zip(astuple(piece), _PIECE, strict=True)):
                raise ValueError(f"tensor {name!r} has a piece with a field of another type")
            if piece.file not in manifest.files or piece.start != at or piece.count < 0:
                raise ValueError(f"tensor {name!r} has a piece out of place")
            at += piece.count
        if at != tensor.spec.count or not tensor.pieces:
            raise ValueError(f"tensor {name!r} is not covered by its pieces")
        room -= tensor.spec.bytes
    if room < 0:
        raise ValueError("the tensors are larger than the files that should hold them")
