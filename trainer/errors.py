"""Errors of the trainer: those that are the user's to mend, and a loss that no further step can."""

from __future__ import annotations

from .rundir.codes import ExitCode


class UsageError(Exception):
    """The text is one line: what is wrong and what would be right."""

    exit_code = ExitCode.USAGE


class NotFinite(Exception):
    """The loss is NaN or infinite, on every rank at the same step; nothing of that step was saved. `step` is the first
    that is not to be kept."""

    def __init__(self, text: str, step: int = -1) -> None:
        super().__init__(text)
        self.step = step


class LossSpike(NotFinite):
    """The loss has been far above what it was, for too long to be a bad batch."""
