"""What the ranks of an attempt have left in its folder, as the supervisor reads it: notes, and what ended them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from supervisor.core.model import Raised
from trainer.rundir.files.untrusted_files import read_json
from trainer.rundir.records.notes import NoteReader

_LONGEST_PATH = 1000


class Notes:
    """What the ranks of one attempt have noted."""

    def __init__(self, file: Callable[[int], Path]) -> None:
        """`file` is where a rank's are."""
        self._file = file
        self._readers: dict[int, NoteReader] = {}

    def read(self, ranks: Iterable[int]) -> list[tuple[int, dict[str, Any]]]:
        """What `ranks` have noted since the last call, with the rank."""
        for rank in ranks:
            if rank not in self._readers:
                self._readers[rank] = NoteReader(self._file(rank))
        return [(rank, note) for rank, reader in sorted(self._readers.items()) for note in reader.read()]


def exception_of(path: Path) -> Raised | None:
    """What ended a rank, as it has left it at `path`; None if there is nothing, or nothing that makes sense."""
    try:
        body = read_json(path)
        return replace(_raised(body), because=tuple(_raised({**body, **each}) for each in body.get("because", [])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _raised(body: dict[str, Any]) -> Raised:
    return Raised(
        rank=int(body["rank"]),
        type=str(body["type"]),
        message=_gist(str(body["message"])),
        frame=str(body["frame"]),
        at=float(body["mono"]),
        exit_code=int(body["exit_code"]),
        bad_step=int(body.get("bad_step", -1)),
        data_step=int(body.get("data_step", -1)),
        kinds=tuple(map(str, body.get("kinds", []))),
        errno=body["errno"] if isinstance(body.get("errno"), int) else None,
        frames=tuple(map(str, body.get("frames", []))),
        unread=_file(body.get("file")),
    )


def _file(told: Any) -> tuple[str, int] | None:
    return (str(told["path"])[:_LONGEST_PATH], int(told["bytes"])) if isinstance(told, dict) else None


def _gist(text: str) -> str:
    """The line of a message that says most: the first, and the last too where another process's traceback lies between."""
    lines = text.strip().splitlines() or [""]
    if any(line.lstrip().startswith(("Traceback (most", "Original Traceback (most")) for line in lines):
        return f"{lines[0][:100]} {lines[-1].strip()}"[:300]
    return lines[0][:300]
