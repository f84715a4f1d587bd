"""The file of one rank, in the safetensors format. It is written and read as a stream, so its digests need no second
pass.

    8 bytes: length of the header | header: JSON, padded to a whole page | the tensors' bytes, one after another
    |--------- block 0 ---------|--------- block 1 ---------|--------- … ---------|     each with its digest

The key of a tensor in a file is its whole name; its box is in the header's DCP_SHARDING_INFO, where torch's own
HuggingFaceStorageReader looks for it. Bytes that were read may be used only after the digests of their blocks are
compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from ...rundir.files.durable import Buffer
from ..errors import Damaged, Misfit, StateError
from .manifest import BLOCK, Manifest, Piece, StoredFile, StoredTensor
from .plan import Share, Spec

CHUNK = 1 << 20
"""Bytes are digested in pieces so small that they are still in the CPU cache when they are written."""
PAGE = 4096
_MAX_HEADER = 100 << 20
"""The safetensors library reads no larger header, so this module neither writes nor reads one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored tensor, or a part of one."""

    key: str
    spec: Spec

    at: tuple[int, ...] = ()
    """Where its box begins in the global tensor. () for a whole tensor."""


def entry_of(share: Share, spec: Spec) -> Entry:
    """The entry for `share`, of a tensor of `spec`, in its rank's file."""
    return Entry(share.name, Spec(spec.dtype, share.box.size), share.box.at)


class Changed(Damaged):
    """A block has another digest than its manifest says."""


Take = tuple[int, memoryview]
"""(first byte of an entry, memory for the bytes from there on)."""
Sink = Callable[[Entry], Sequence[Take]]
"""Gives the memory for the bytes of an entry that are needed, in order."""


class Digest:
    """Counts the bytes that pass through it, and digests each block of them."""

    def __init__(self, block: int = BLOCK) -> None:
        self._block, self._hash, self._done = block, xxhash.xxh3_128(), 0
        self._blocks: list[str] = []
        self.bytes = 0

    def add(self, chunk: Buffer) -> None:
        view = memoryview(chunk).cast("B")
        self.bytes += len(view)
        while view:
            part = view[: self._block - self._done]
            self._hash.update(part)
            self._done += len(part)
            view = view[len(part) :]
            if self._done == self._block:
                self._blocks.append(self._hash.hexdigest())
                self._hash, self._done = xxhash.xxh3_128(), 0

    def through(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        """`chunks`, cut so small that they are still in the CPU cache when they are written."""
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            for start in range(0, len(view), CHUNK):
                part = view[start : start + CHUNK]
                self.add(part)
                yield part

    def stored(self) -> StoredFile:
        """The file of which all bytes have passed."""
        last = (self._hash.hexdigest(),) if self._done else ()
        return StoredFile(self.bytes, self._block, (*self._blocks, *last))


def index(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """The part of a header that says where each entry lies, and `metadata`. It changes only with these."""
    fields: dict[str, Any] = {}
    at = 0
    for entry in entries:
        end = at + entry.spec.bytes
        fields[entry.key] = {"dtype": entry.spec.dtype, "shape": entry.spec.shape, "data_offsets": [at, end]}
        at = end
    boxes = {entry.key: {"saved_offsets": entry.at or (0,) * len(entry.spec.shape)} for entry in entries}
    known = {**metadata, "DCP_SHARDING_INFO": json.dumps(boxes, separators=(",", ":"))}
    return json.dumps({**fields, "__metadata__": known}, separators=(",", ":")).encode()


def header_of(index: bytes, metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file with that index and more `metadata`: whole pages, so that the tensors after them begin
    at a page. StateError if no reader would take it."""
    text = index
    if metadata:
        # The index ends with its metadata.
        text = index[:-2] + b"," + json.dumps(metadata, separators=(",", ":")).encode()[1:] + b"}"
    if len(text) > _MAX_HEADER - PAGE:
        raise StateError(
            f"what this rank alone has takes {len(text)} bytes of text, and a file holds {_MAX_HEADER}: long lists of "
            "numbers, texts and bytes belong into tensors"
        )
    text += b" " * (-(len(text) + 8) % PAGE)
    return len(text).to_bytes(8, "little") + text


def header(entries: Sequence[Entry], fixed: Mapping[str, str], metadata: Mapping[str, str] | None = None) -> bytes:
    """The first bytes of a file that holds `entries` in this order."""
    return header_of(index(entries, fixed), metadata or {})


def _parse_header(text: bytes, room: int) -> tuple[list[Entry], dict[str, str]]:
    fields = json.loads(text)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata is not text")
    places = json.loads(metadata.get("DCP_SHARDING_INFO", "{}"))
    entries, at = [], 0
    for key, field in sorted(fields.items(), key=lambda item: item[1]["data_offsets"]):
        spec = Spec(field["dtype"], tuple(field["shape"]))
        if any(type(n) is not int or n < 0 for n in spec.shape):
            raise ValueError(f"{key!r} has shape {field['shape']!r}")
        if field["data_offsets"] != [at, at + spec.bytes]:
            raise ValueError(f"{key!r} lies at {field['data_offsets']!r}, not at {at}")
        place = tuple(places[key]["saved_offsets"]) if key in places else ()
        if any(type(n) is not int or n < 0 for n in place) or len(place) not in (0, len(spec.shape)):
            raise ValueError(f"{key!r} has a place that is none")
        entries.append(Entry(key, spec, place))
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


def check_entries(manifest: Manifest, name: str, entries: Sequence[Entry]) -> None:
    """Misfit unless the file `name`, which has `entries`, has each box that `manifest` says it has."""
    there = {entry.key: entry for entry in entries}
    for stored in manifest.tensors.values():
        for piece in stored.pieces:
            if piece.file == name and (problem := misfit(piece, stored, there.get(piece.key))):
                raise Misfit(problem)


def misfit(piece: Piece, stored: StoredTensor, found: Entry | None) -> str | None:
    """How the entry `found` for `piece` of `stored` differs from what its manifest says; None if it does not."""
    if found is None:
        return f"{piece.key} is not in {piece.file}"
    expected = Entry(piece.key, Spec(stored.dtype, piece.box.size), piece.box.at)
    # In format 1 a whole tensor has its own shape there, not the flat one, and a piece has no place.
    if found == expected or (stored.flat and found.spec.bytes == expected.spec.bytes):
        return None
    return (
        f"{piece.key} is {found.spec.dtype} {list(found.spec.shape)} from {list(found.at)} on in {piece.file}, and "
        f"{stored.dtype} {list(piece.box.size)} from {list(piece.box.at)} on in the manifest"
    )


def _parsed(text: bytes, room: int) -> tuple[list[Entry], dict[str, str]]:
    try:
        return _parse_header(text, room)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise Damaged(f"its header cannot be read: {error}") from None


def read_shard(fd: int, stored: StoredFile, sink: Sink, everything: bool = False) -> dict[str, str]:
    """The metadata of the file `stored`. The bytes of each entry are in the memory that `sink` gave for them, as they
    were written. Only the blocks in which they lie are read; with `everything`, all. Damaged if one of those has
    changed, or if it is no file of this format; OSError if it cannot be read. Then what was read must not be used."""
    prefix = _pread(fd, 0, 8)
    length = int.from_bytes(prefix, "little")
    if length > min(_MAX_HEADER, stored.bytes - 8):
        raise Damaged("its header is not one")
    head = prefix + _pread(fd, 8, length)
    entries, metadata = _parsed(head[8:], stored.bytes - len(head))
    # The header is read again with its blocks: what was parsed is what was digested.
    again = bytearray(len(head))
    takes: list[Take] = [(0, memoryview(again))]
    at = len(head)
    for entry in entries:
        for start, view in sink(entry):
            if start + len(view) > entry.spec.bytes:
                raise Damaged(f"{entry.key} has {entry.spec.bytes} bytes, expected {start + len(view)}")
            if at + start < takes[-1][0] + len(takes[-1][1]):
                raise ValueError(f"{entry.key} is not taken in order")
            takes.append((at + start, view))
        at += entry.spec.bytes
    _read_blocks(fd, stored, takes, everything)
    if again != head:
        raise Damaged("its header changed while it was read")
    return metadata


def _pread(fd: int, at: int, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = os.pread(fd, count - len(data), at + len(data))
        if not part:
            raise Damaged("it is cut short")
        data += part
    return bytes(data)


def _read_blocks(fd: int, stored: StoredFile, takes: list[Take], everything: bool) -> None:
    """All `takes` (in order) are filled from the file, and each block that was read has its digest."""
    scratch = memoryview(bytearray(min(CHUNK, max(stored.bytes, 1))))
    waiting = [(at, view) for at, view in reversed(takes) if len(view)]
    for number, expected in enumerate(stored.blocks):
        start, end = number * stored.block, min((number + 1) * stored.block, stored.bytes)
        if not everything and (not waiting or waiting[-1][0] >= end):
            continue
        digest = xxhash.xxh3_128()
        while start < end:
            into, stop = scratch, end
            if waiting and waiting[-1][0] < end:
                at, view = waiting[-1]
                if at > start:
                    stop = at
                else:
                    into = view
                    stop = min(end, start + len(view))
            part = into[: min(CHUNK, stop - start)]
            got = os.preadv(fd, [part], start)
            if got == 0:
                raise Damaged("it is cut short")
            digest.update(part[:got])
            start += got
            if into is not scratch:
                waiting.pop()
                if got < len(into):
                    waiting.append((start, into[got:]))
        if digest.hexdigest() != expected:
            raise Changed("it does not match its digest")
