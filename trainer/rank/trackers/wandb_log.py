"""Reads the rows at the end of W&B's own file of a run, as wandb 0.31 writes it: LevelDB's log format, blocks of 32 KB,
records cut into pieces, a protobuf `Record` in each."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from typing import Any

BLOCK = 1 << 15
"""The service writes only whole blocks, until the run is finished."""
_HEAD = struct.Struct("<IHB")
_NAME = b":W&B"
_MOST = 256
"""The number of blocks that are read, from the end of a file."""
_LONGEST = 1 << 22
"""More bytes than this at the end are no record that a kill has cut off."""
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def rows(path: str, record: Any) -> dict[int, dict[str, Any]]:
    """By step, what was logged in each row, with the time as `_timestamp`. `record` is the class of a record. Empty for
    a file that is none of W&B's."""
    found: dict[int, dict[str, Any]] = {}
    for _, data in _records(path):
        try:
            each = record.FromString(data)
        except Exception:
            continue  # a kill may have torn it
        if each.WhichOneof("record_type") == "history":
            row = found[each.history.step.num] = {}
            for item in each.history.item:
                *outer, key = item.nested_key or [item.key]
                inner = row
                for name in outer:
                    inner = inner.setdefault(name, {})
                inner[key] = _value(item)
            row.pop("_step", None)
    return found


def _value(item: Any) -> Any:
    kind = item.WhichOneof("value") if "value" in item.DESCRIPTOR.oneofs_by_name else None
    if kind is None:
        return json.loads(item.value_json)
    return json.loads(item.json) if kind == "json" else None if kind == "none" else getattr(item, kind)


def mend(path: str) -> None:
    """Cuts off the last record if a kill has left it incomplete. `wandb sync` would stop there, and leave out the files
    of later attempts."""
    end = max((end for end, _ in _records(path)), default=0)
    # What follows a whole record is less than a block and a record: otherwise the file is damaged, and stays.
    if end and end < os.stat(path).st_size < end + _LONGEST:
        os.truncate(path, end)


def _records(path: str) -> Iterator[tuple[int, bytes]]:
    """(end, data) of each whole record, up to damage."""
    with open(path, "rb") as file:
        if file.read(len(_NAME)) != _NAME:
            return
        blocks = -(-os.fstat(file.fileno()).st_size // BLOCK)
        before = max(0, blocks - _MOST) * BLOCK
        file.seek(before)
        data = file.read(_MOST * BLOCK)
    parts: list[bytes] | None = None
    # The file begins with a head of seven bytes. A piece is never cut by the end of a block.
    at = 0 if before else _HEAD.size
    while at + _HEAD.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < _HEAD.size:
            at += left
            continue
        _, length, kind = _HEAD.unpack_from(data, at)
        begin = at + _HEAD.size
        at = begin + length
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or at > len(data):
            return
        if kind in (_FULL, _FIRST):
            parts = []
        if parts is None:
            continue  # its beginning is in a block that was not read
        parts.append(data[begin:at])
        if kind in (_FULL, _LAST):
            yield before + at, b"".join(parts)
            parts = None
