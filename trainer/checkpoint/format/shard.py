"""The file of one rank, in the safetensors format. It is written and read as a stream, so its digest needs no second
pass.

    8 bytes: length of the header | header: JSON, padded to a whole page | the tensors' bytes, one after another

The bytes are digested piece by piece as they pass. Bytes that were read may be used only after the digest is compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from ...rundir.files.durable import Buffer
from ..errors import Damaged
from .plan import Share, Spec

CHUNK = 1 << 20
PAGE = 4096
_MAX_HEADER = 100 << 20
"""The safetensors library reads no larger header, so this module neither writes nor reads one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored tensor, or a part of one."""

    key: str
    spec: Spec


def entry_of(share: Share, spec: Spec) -> Entry:
    """The entry for `share`, of a tensor of `spec`, in its rank's file."""
    # A whole tensor keeps its shape, so that any reader of safetensors sees it unchanged.
    return Entry(share.key(spec), spec if share.count == spec.count else Spec(spec.dtype, (share.count,)))


Sink = Callable[[Entry], "memoryview | None"]
"""Gives the memory for the bytes of an entry; None skips them (they are digested all the same)."""


class Digest:
    """Counts and digests the bytes that pass through it."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()
        self.bytes = 0

    def add(self, chunk: Buffer) -> None:
        view = memoryview(chunk).cast("B")
        self._hash.update(view)
        self.bytes += len(view)

    def through(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        """`chunks`, cut so small that they are still in the CPU cache when they are written."""
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            for start in range(0, len(view), CHUNK):
                part = view[start : start + CHUNK]
                self.add(part)
                yield part

    @property
    def hex(self) -> str:
        return self._hash.hexdigest()


def index(entries: Sequence[Entry]) -> bytes:
    """The part of a header that says where each entry lies. It changes only with `entries`."""
    fields: dict[str, Any] = {}
    at = 0
    for entry in entries:
        end = at + entry.spec.bytes
        fields[entry.key] = {"dtype": entry.spec.dtype, "shape": entry.spec.shape, "data_offsets": [at, end]}
        at = end
    return json.dumps(fields, separators=(",", ":")).encode()


def header_of(index: bytes, metadata: dict[str, str]) -> bytes:
    """The first bytes of a file with that index: whole pages, so that the tensors after them begin at a page."""
    text = b'{"__metadata__":' + json.dumps(metadata, separators=(",", ":")).encode()
    text += b"," + index[1:] if len(index) > 2 else b"}"
    text += b" " * (-(len(text) + 8) % PAGE)
    return len(text).to_bytes(8, "little") + text


def header(entries: Sequence[Entry], metadata: dict[str, str]) -> bytes:
    """The first bytes of a file that holds `entries` in this order."""
    return header_of(index(entries), metadata)


def _parse_header(text: bytes, room: int) -> tuple[list[Entry], dict[str, str]]:
    fields = json.loads(text)
    metadata = fields.pop("__metadata__", {})
    entries, at = [], 0
    for key, field in sorted(fields.items(), key=lambda item: item[1]["data_offsets"]):
        spec = Spec(field["dtype"], tuple(field["shape"]))
        if any(type(n) is not int or n < 0 for n in spec.shape):
            raise ValueError(f"{key!r} has shape {field['shape']!r}")
        if field["data_offsets"] != [at, at + spec.bytes]:
            raise ValueError(f"{key!r} lies at {field['data_offsets']!r}, not at {at}")
        entries.append(Entry(key, spec))
        at += spec.bytes
    if at != room:
        raise ValueError(f"the tensors have {at} bytes, the file has {room} for them")
    return entries, metadata


def entries_in(file: memoryview) -> tuple[list[tuple[Entry, memoryview]], dict[str, str]]:
    """The entries in `file` (the bytes of a whole file), each with its own bytes, and the metadata. Damaged if it is
    not of this format."""
    length = int.from_bytes(file[:8], "little")
    if length > min(_MAX_HEADER, len(file) - 8):
        raise Damaged("its header is not one")
    entries, metadata = _parsed(bytes(file[8 : 8 + length]), len(file) - 8 - length)
    found, at = [], 8 + length
    for entry in entries:
        found.append((entry, file[at : at + entry.spec.bytes]))
        at += entry.spec.bytes
    return found, metadata


def _parsed(text: bytes, room: int) -> tuple[list[Entry], dict[str, str]]:
    try:
        return _parse_header(text, room)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise Damaged(f"its header cannot be read: {error}") from None


def _fill(fd: int, view: memoryview, digest: Digest) -> None:
    while view:
        part = view[:CHUNK]
        got = os.readv(fd, [part])
        if got == 0:
            raise Damaged("it is cut short")
        digest.add(part[:got])
        view = view[got:]


def _pass_over(fd: int, count: int, scratch: memoryview, digest: Digest) -> None:
    while count:
        part = scratch[: min(count, CHUNK)]
        _fill(fd, part, digest)
        count -= len(part)


def read_shard(fd: int, sink: Sink) -> tuple[Digest, dict[str, str]]:
    """The digest of the whole file and its metadata. The bytes of each entry are in the memory that `sink` gave.
    Damaged if it is not a file of this format, OSError if it cannot be read. Only the digest can prove that it is
    unchanged."""
    size = os.fstat(fd).st_size
    digest = Digest()
    prefix = bytearray(8)
    _fill(fd, memoryview(prefix), digest)
    length = int.from_bytes(prefix, "little")
    if length > min(_MAX_HEADER, size - 8):
        raise Damaged("its header is not one")
    text = bytearray(length)
    _fill(fd, memoryview(text), digest)
    entries, metadata = _parsed(bytes(text), size - 8 - length)
    scratch = memoryview(bytearray(CHUNK))
    for entry in entries:
        view = sink(entry)
        if view is None:
            _pass_over(fd, entry.spec.bytes, scratch, digest)
        elif len(view) != entry.spec.bytes:
            raise Damaged(f"{entry.key} has {entry.spec.bytes} bytes, expected {len(view)}")
        else:
            _fill(fd, view, digest)
    return digest, metadata
