"""Reads the points in the event files of a TensorBoard folder. Records have the frame of TFRecord: length, checksum, an
Event, checksum."""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

from .curve import Point, kept

START = 1
"""SessionLog.START. A reader hides the points before this record that have its step or a later one."""
_HEAD = struct.Struct("<Q4x")
_TAIL = 4
_LARGEST = 1 << 16
"""The largest record that is read, in bytes. An image is larger; a scalar is logged beside it."""
_MOST = 20_000
"""The number of records that are read, from the end of a file."""


def names(folder: str) -> set[str]:
    """The names of the event files in `folder`. Empty if the folder is not on this machine's file system."""
    with contextlib.suppress(OSError):
        return {name for name in os.listdir(folder) if "tfevents" in name}
    return set()


def points(folder: str, own: set[str], since: float, event: Any) -> list[Point]:
    """The points of `folder` that a reader shows, in their order, without the files in `own`. `event` is the class of a
    record. Empty if another process has written there `since`: a hiding event would also hide that process's new
    points."""
    found: list[Point | int] = []
    for name in sorted(names(folder) - own):
        path = os.path.join(folder, name)
        if os.stat(path).st_mtime >= since:
            return []
        found += _points(path, event)
    return kept(found)


def _points(path: str, event: Any) -> Iterator[Point | int]:
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for begin, end in _records(data)[-_MOST:]:
                try:
                    record = event.FromString(data[begin:end])
                except Exception:
                    return  # The rest is damaged. No reader gets further.
                if record.HasField("session_log") and record.session_log.status == START:
                    yield record.step
                for value in record.summary.value:
                    yield value.tag, record.step


def _records(data: mmap.mmap) -> list[tuple[int, int]]:
    """The (begin, end) of each small record. A kill may have cut off the last one."""
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
