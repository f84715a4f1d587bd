"""Files of JSON lines, read while others write them: whole lines that are objects, whatever else stands between them.

Files may come from anybody. A line that has no newline yet is not read: it is being written, or was torn by a kill. What
is no object is passed over and counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .codec import decode
from .untrusted_files import open_file

WINDOW = 4 << 20
"""Bytes that are read at once: a longer line comes in pieces, and no piece is an object."""


def object_of(line: bytes) -> dict[str, Any] | None:
    """The JSON object that `line` is, or None."""
    try:
        return decode(line, dict[str, Any])
    except ValueError:
        return None


class Follower:
    """Gives each object of the file once, in the order of the file."""

    def __init__(self, path: Path) -> None:
        self.skipped = 0
        """Whole lines that are no objects."""
        self.torn = False
        """Whether there was, when the file was last read, a last line without its newline."""
        self._path = path
        self._offset = 0

    def objects(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The lines that were added since the last call, and the objects that they are. A file that shrank below what was
        read is read again; one that cannot be read has none."""
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
        """The whole lines from where it stands."""
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
