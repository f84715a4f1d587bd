"""Errors of the trainer: those that the user can repair, and a loss that no further step can repair."""

from __future__ import annotations

from .rundir.codes import ExitCode


class UsageError(Exception):
    """The text is one line: what is wrong and what would be right."""

    exit_code = ExitCode.USAGE


class NotFinite(Exception):
    """The loss is NaN or infinite; raised on every rank at the same step. Nothing of that step was saved. `step` is the
    first step that must not be kept."""

    def __init__(self, text: str, step: int = -1) -> None:
        super().__init__(text)
        self.step = step


class StartedOver(Exception):
    """The script has not loaded what it had saved, and is about to save over it."""


class LossSpike(NotFinite):
    """The loss was far above its usual values, for too many steps to be one bad batch."""
