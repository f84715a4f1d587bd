"""The numbers in an event file of TensorBoard, read without TensorBoard.

The file is a row of records: the length of an Event, a checksum of that length, the Event (protobuf), a checksum. Of a
large file only blocks are read, spread over the whole of it: the checksum of a length tells where a record begins.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.rundir.files.untrusted_files import open_file

_HEAD = struct.Struct("<QI")
_TAIL = 4
_LARGEST = 1 << 16
"""A larger record is an image or a graph."""
_BLOCK = 2048
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")
_EVENT_TIME, _EVENT_STEP, _EVENT_SUMMARY, _SUMMARY_VALUE = 1, 2, 5, 1
_VALUE_TAG, _VALUE_SIMPLE, _VALUE_TENSOR = 1, 2, 8
_TENSOR_CONTENT, _TENSOR_FLOATS = 4, 5


@dataclass(frozen=True, slots=True)
class Point:
    """A number that was logged. `at`: seconds since the epoch."""

    at: float
    step: int
    tag: str
    value: float


def size_of(path: Path) -> int:
    """Bytes. 0 if it is no plain file."""
    try:
        fd = open_file(path)
    except OSError:
        return 0
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def points(path: Path, most: int) -> list[Point]:
    """The finite numbers in the file, in its order, from at most about `most` bytes of it. Empty if it is no event
    file. What follows damage is left out, if the whole file is read."""
    try:
        fd = open_file(path)
    except OSError:
        return []
    try:
        size = os.fstat(fd).st_size
        if size <= most:
            return [point for event in _records(os.pread(fd, size, 0)) for point in _numbers(event)]
        blocks = max(2, most // _BLOCK)
        found = []
        for n in range(blocks):
            data = os.pread(fd, _BLOCK, n * (size - _BLOCK) // (blocks - 1))
            begin = _first(data)
            found += [point for event in _records(data[begin:]) for point in _numbers(event)]
        return found
    except OSError:
        return []
    finally:
        os.close(fd)


def _first(data: bytes) -> int:
    """Where the first record of a block begins. The block's end, if none does."""
    # The six upper bytes of a length are nearly always zero.
    at = data.find(b"\0\0\0\0\0\0", 2)
    while at >= 2:
        begin = at - 2
        if begin + _HEAD.size <= len(data):
            length, told = _HEAD.unpack_from(data, begin)
            if length <= _LARGEST and told == _checksum(data[begin : begin + 8]):
                return begin
        at = data.find(b"\0\0\0\0\0\0", at + 1)
    return len(data)


def _records(data: bytes) -> Iterator[bytes]:
    """The whole small records in `data`, which begins with one."""
    at = 0
    while at + _HEAD.size <= len(data):
        length, told = _HEAD.unpack_from(data, at)
        if told != _checksum(data[at : at + 8]):
            return
        begin = at + _HEAD.size
        at = begin + length + _TAIL
        if at <= len(data) and length <= _LARGEST:
            yield data[begin : begin + length]


def _numbers(event: bytes) -> list[Point]:
    """The numbers of one Event."""
    at, step, values = 0.0, 0, []
    try:
        for number, kind, content in _fields(event):
            if number == _EVENT_TIME and kind == _FIXED64:
                (at,) = _DOUBLE.unpack(content)
            elif number == _EVENT_STEP and kind == _VARINT:
                step = int.from_bytes(content, "little")
            elif number == _EVENT_SUMMARY and kind == _BYTES:
                values = [part for key, wire, part in _fields(content) if (key, wire) == (_SUMMARY_VALUE, _BYTES)]
        told = [_number(value) for value in values]
    except (IndexError, UnicodeDecodeError, struct.error):
        return []
    return [Point(at, step, *one) for one in told if one is not None and step < 1 << 53 and math.isfinite(one[1])]


def _number(value: bytes) -> tuple[str, float] | None:
    """(tag, number) of a Summary.Value. None if it is something else: a text, an image."""
    tag, found = "", None
    for number, kind, content in _fields(value):
        if number == _VALUE_TAG and kind == _BYTES:
            tag = content.decode()
        elif number == _VALUE_SIMPLE and kind == _FIXED32:
            (found,) = _FLOAT.unpack(content)
        elif number == _VALUE_TENSOR and kind == _BYTES:
            for part, wire, inner in _fields(content):
                # A scalar of the newer API is a tensor of one float.
                if part in (_TENSOR_CONTENT, _TENSOR_FLOATS) and wire in (_BYTES, _FIXED32) and len(inner) == 4:
                    (found,) = _FLOAT.unpack(inner)
    return None if found is None else (tag, found)


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(number, wire type, content) of each field of a protobuf message; a varint's content is little-endian. IndexError
    if the message is cut off or garbled."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, kind, value.to_bytes(10, "little")
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind, 0)
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif not size:
            raise IndexError("no such wire type")
        if at + size > len(data):
            raise IndexError("cut off")
        yield key >> 3, kind, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends)."""
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise IndexError("too long")


def _table() -> tuple[int, ...]:
    found = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return tuple(found)


_CRC32C = _table()


def _checksum(data: bytes) -> int:
    """The masked CRC-32C of TFRecord."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
