"""Files of JSON lines, read while others write them. Only whole lines that are JSON objects are given.

Files may come from anybody. A line without a newline is not read: it is being written, or a kill has torn it. A line
that is not an object is skipped and counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .codec import decode
from .untrusted_files import open_file

WINDOW = 4 << 20
"""The number of bytes read at once. A longer line comes in pieces, and no piece is an object."""


def object_of(line: bytes) -> dict[str, Any] | None:
    """The JSON object in `line`, or None."""
    try:
        return decode(line, dict[str, Any])
    except ValueError:
        return None


class Follower:
    """Gives each object of the file once, in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.skipped = 0
        """The number of whole lines that are not objects."""
        self.torn = False
        """Whether the last line had no newline when the file was last read."""
        self._path = path
        self._offset = 0

    def objects(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The lines that were added since the last call, each with its object. A file that became shorter than the part
        already read is read again from its start. A file that cannot be read gives none."""
        try:
            fd = open_file(self._path)
        except OSError:
            return
        try:
            for data in self._windows(fd):
                for line in data.split(b"\n"):
                    if (body := object_of(line)) is not None:
                        yield line, body
                    elif line.strip():
                        self.skipped += 1
        except OSError:
            return
        finally:
            os.close(fd)

    def _windows(self, fd: int) -> Iterator[bytes]:
        """The whole lines after the place already read."""
        size = os.fstat(fd).st_size
        if size < self._offset:
            self._offset = 0
        data = b""
        while self._offset < size and (data := os.pread(fd, min(WINDOW, size - self._offset), self._offset)):
            whole = data.rfind(b"\n") + 1
            if not whole and len(data) < WINDOW:
                break
            self._offset += whole or len(data)
            yield data[: whole or len(data)]
            data = b""
        self.torn = bool(data.strip())
