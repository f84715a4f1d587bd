"""Errors that end a command with one line and an exit code.

Refusal                2    a bad request (usage, config, preflight); nothing was started
  NoSuchRun          102
  HeldByAnother      108
  Pointless          104
InternalError          1    an error of ours during a run; the text says which processes live on
"""

from __future__ import annotations

from trainer.rundir.codes import ExitCode


class Refusal(Exception):
    """The text says what is wrong, why, and what to do next."""

    exit_code = ExitCode.USAGE


class NoSuchRun(Refusal):
    exit_code = ExitCode.NO_SUCH_RUN


class HeldByAnother(Refusal):
    exit_code = ExitCode.HELD


class Pointless(Refusal):
    """The script itself makes every attempt fail in the same way."""

    exit_code = ExitCode.POINTLESS


class InternalError(Exception):
    exit_code = ExitCode.FAILED
