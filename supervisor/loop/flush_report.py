"""What a flush has printed: its report in the last line, or why it has none."""

from __future__ import annotations

import contextlib
from typing import IO, Any

from trainer.rundir.files.codec import decode


def printed(stdout: IO[bytes]) -> str:
    """All that the flush has printed to `stdout`, which is closed."""
    with stdout:
        return stdout.read().decode(errors="replace").strip()


def of(text: str) -> dict[str, Any] | None:
    """The report in its last line; None if the flush died before it could report."""
    with contextlib.suppress(ValueError, IndexError):
        outcome: dict[str, Any] = decode(text.splitlines()[-1].encode(), dict[str, Any])
        if "error" in outcome or type(outcome.get("step")) is int:
            return outcome
    return None
