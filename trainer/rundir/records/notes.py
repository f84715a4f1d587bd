"""Notes: messages of a rank beyond its beats. Each is a JSON line, and each file has one writer. The supervisor turns
them into events.

Kinds: `resumed` {step, source}, `checkpoint_saved` {step, bytes, seconds}, `checkpoint_failed` {step, error, seconds},
`checkpoint_bad` {path, reason, moved_to}, `data_skipped` {from, to, step}, `flush_due` {step, keep}, `fault` {spec},
`warning` {text}. Notes about saves may have `stall_s`: the seconds that snapshots, and waiting, have held training up
since the last such note.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..files import room
from ..files.codec import encode
from ..files.durable import append_line
from ..files.json_lines import Follower
from ..secrets import Redactor

_KEPT = 1000
"""The most notes that wait for room on a full disk."""
_ROOM = 4096
"""Bytes of disk that are reserved for later notes."""


class NoteWriter:
    """The notes file of a rank, made with its first note. It never raises: a note is not worth a training run."""

    def __init__(self, path: Path | None, environ: Mapping[str, str] = os.environ) -> None:
        self._path = path
        self._redactor = Redactor(environ)
        self._waiting: deque[bytes] = deque(maxlen=_KEPT)
        self._writing = threading.Lock()

    def __call__(self, kind: str, **fields: Any) -> None:
        """Writes the note whole, after the notes that the disk refused before. Or the note waits for the next call."""
        if self._path is None:
            return
        line = encode({"kind": kind, "mono": time.monotonic(), **fields})
        self._waiting.append(self._redactor.json(line))
        self.retry()

    def keep_room(self) -> None:
        """Makes the file and reserves room in it, for notes on a disk that fills up."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                room.keep(fd, _ROOM)
                os.close(fd)

    def retry(self) -> None:
        """Writes the waiting notes, if the disk takes them now."""
        if self._path is None or not self._waiting:
            return
        # A script may save in several threads.
        with self._writing, contextlib.suppress(OSError, IndexError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                while self._waiting:
                    append_line(fd, self._waiting[0])
                    self._waiting.popleft()
                room.keep(fd, _ROOM)
            finally:
                os.close(fd)


class NoteReader(Follower):
    """Follows one notes file. A line that is not a note is skipped."""

    def read(self) -> list[dict[str, Any]]:
        """The notes that were added since the last call."""
        return [note for _, note in self.objects() if _is_note(note)]


_OURS = frozenset({"ts", "seq", "level", "run", "attempt", "msg", "event", "rank", "by"})
"""Fields that events add to those of a note. So a note cannot have them."""
_OF_A_STEP = ("resumed", "checkpoint_saved", "flush_due")


class _Known(msgspec.Struct):
    """The types of the fields that somebody reads. A note may have other fields."""

    kind: str
    mono: float | None = None
    step: int | msgspec.UnsetType = msgspec.UNSET
    keep: int | None = None
    stall_s: float = 0.0


def _is_note(note: dict[str, Any]) -> bool:
    try:
        known = msgspec.convert(note, _Known)
    except ValueError:
        return False
    return not _OURS & note.keys() and (known.step is not msgspec.UNSET or known.kind not in _OF_A_STEP)
