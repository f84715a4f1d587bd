"""Reads the event files of a TensorBoard folder: which points they have. Records are framed as in TFRecord: length,
checksum, an Event, checksum."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

from .curve import Point, kept

START = 1
"""SessionLog.START: a reader hides the points before it, from its step on."""
_HEAD = struct.Struct("<Q4x")
_TAIL = 4
_LARGEST = 1 << 16
"""Bytes of a record that is looked into. An image has more, and is logged beside a scalar."""
_MOST = 20_000
"""Records of a file that are looked into, its last ones."""


def names(folder: str) -> set[str]:
    """The event files in `folder`. None in a folder that is not of this machine."""
    with contextlib.suppress(OSError):
        return {name for name in os.listdir(folder) if "tfevents" in name}  # noqa: PTH208
    return set()


def points(folder: str, own: set[str], since: float, event: Any) -> list[Point]:
    """The points that a reader shows of `folder` without the files in `own`, in their order. `event` is the class of a
    record. None if another process has written there `since`: then what one hides, the other may have just written."""
    found: list[Point | int] = []
    for name in sorted(names(folder) - own):
        path = os.path.join(folder, name)  # noqa: PTH118
        if os.stat(path).st_mtime >= since:  # noqa: PTH116
            return []
        found += _points(path, event)
    return kept(found)


def _points(path: str, event: Any) -> Iterator[Point | int]:
    with open(path, "rb") as file:  # noqa: PTH123
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for begin, end in _records(data)[-_MOST:]:
                try:
                    record = event.FromString(data[begin:end])
                except Exception:
                    return  # the rest is damaged, and no reader gets further
                if record.HasField("session_log") and record.session_log.status == START:
                    yield record.step
                for value in record.summary.value:
                    yield value.tag, record.step


def _records(data: mmap.mmap) -> list[tuple[int, int]]:
    """Where the small records are. A kill may have cut the last one off."""
    found, at = [], 0
    while at + _HEAD.size <= len(data):
        (length,) = _HEAD.unpack_from(data, at)
        begin = at + _HEAD.size
        at = begin + length + _TAIL
        if at > len(data):
            break
        if length <= _LARGEST:
            found.append((begin, begin + length))
    return found
