"""The errors of a checkpoint.

CheckpointError
  StateError            a value that a checkpoint cannot hold; the text names its path. Also a TypeError  exit code 78
  Damaged               the bytes on disk have changed since they were written: quarantined, an older one is tried
  Misfit                whole, but its ranks' parts do not fit together: it was never usable. A CheckpointMismatch
  ReplicasDiffer        the ranks' states have drifted apart: nothing of it is saved, and a restart goes back
  Unreadable            this process cannot read it (permission, newer format), but it may be whole: left where it is
  CheckpointMismatch    whole, but of another model or optimizer; nothing was changed     exit code 78
  NoUsableCheckpoint    there were checkpoints and none can be used, or one was required  exit code 78
"""

from __future__ import annotations

from ..rundir.codes import ExitCode


class CheckpointError(Exception):
    """The text is one line: what is wrong and, if something can be done, what to do next."""

    exit_code = ExitCode.FAILED


class StateError(CheckpointError, TypeError):
    exit_code = ExitCode.NEVER_RESTART


class Damaged(CheckpointError):
    pass


class Unreadable(CheckpointError):
    pass


class CheckpointMismatch(CheckpointError):
    exit_code = ExitCode.NEVER_RESTART


class ReplicasDiffer(CheckpointError):
    def __init__(self, text: str, equal_at: int = -1) -> None:
        super().__init__(text)
        self.equal_at = equal_at
        """The newest step after which all ranks were the same."""


class Misfit(CheckpointMismatch):
    pass


class NoUsableCheckpoint(CheckpointError):
    exit_code = ExitCode.NEVER_RESTART
