"""What a flush has printed: its report in the last line, or why it has none."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO, Any

from trainer.rundir.files.codec import decode


def printed(where: Path | IO[bytes]) -> str:
    """All that the flush has printed, which is kept no longer. Nothing, if it cannot be read."""
    if not isinstance(where, Path):
        with where as stdout:
            return _text(stdout.read())
    try:
        return _text(where.read_bytes())
    except OSError:
        return ""
    finally:
        with contextlib.suppress(OSError):
            where.unlink(missing_ok=True)


def of(text: str) -> dict[str, Any] | None:
    """The report in its last line; None if the flush died before it could report."""
    with contextlib.suppress(ValueError, IndexError):
        outcome: dict[str, Any] = decode(text.splitlines()[-1].encode(), dict[str, Any])
        if "error" in outcome or type(outcome.get("step")) is int:
            return outcome
    return None


def _text(data: bytes) -> str:
    return data.decode(errors="replace").strip()
