"""The supervisor's reader of the ranks' records in the attempt's folder: their notes, and the exceptions that ended
them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from supervisor.core.model import Raised
from trainer.rundir.files.codec import read
from trainer.rundir.records.errors import Described, ErrorRecord
from trainer.rundir.records.notes import NoteReader

_LONGEST_PATH = 1000


class Notes:
    """The notes of the ranks of one attempt."""

    def __init__(self, file: Callable[[int], Path]) -> None:
        """`file` gives the path of a rank's notes."""
        self._file = file
        self._readers: dict[int, NoteReader] = {}

    def read(self, ranks: Iterable[int]) -> list[tuple[int, dict[str, Any]]]:
        """Tuples (rank, note): the notes of `ranks` that are new since the last call."""
        for rank in ranks:
            if rank not in self._readers:
                self._readers[rank] = NoteReader(self._file(rank))
        return [(rank, note) for rank, reader in sorted(self._readers.items()) for note in reader.read()]


def exception_of(path: Path) -> Raised | None:
    """The exception that ended a rank, from its record at `path`. None if there is no record, or no valid one."""
    try:
        record = read(path, ErrorRecord)
    except (OSError, ValueError):
        return None
    return replace(_raised(record, record), because=tuple(_raised(record, each) for each in record.because))


def _raised(record: ErrorRecord, error: Described) -> Raised:
    return Raised(
        rank=record.rank,
        type=error.type,
        message=error.message,
        frame=record.frame,
        at=record.mono,
        exit_code=record.exit_code,
        bad_step=record.bad_step,
        data_step=record.data_step,
        kinds=error.kinds,
        errno=error.errno,
        frames=record.frames,
        unread=(record.file.path[:_LONGEST_PATH], record.file.bytes) if record.file else None,
    )
