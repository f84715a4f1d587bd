"""Errors that end a command with one line and an exit code.

Refusal                2    a bad request: usage, config, preflight; nothing was started
  NoSuchRun          102
  HeldByAnother      108
InternalError          1    a mistake of ours, in the middle of a run; the text says what lives on
"""

from __future__ import annotations


class Refusal(Exception):
    """The text says what is wrong, why, and what to do next."""

    exit_code = 2


class NoSuchRun(Refusal):
    exit_code = 102


class HeldByAnother(Refusal):
    exit_code = 108


class InternalError(Exception):
    exit_code = 1
