"""Checks that a run is still ours: its folder is in its place, and no later leader has begun. If the folder were moved
during the run, the next writer would make it again in the old place. Then the run's files would lie in two places."""

from __future__ import annotations

import os
from pathlib import Path

from supervisor.errors import HeldByAnother, Refusal
from supervisor.run.folder.epoch import Epoch
from trainer.rundir.codes import ExitCode


class Moved(Exception):
    """The run's folder is at `path` now, and no process of the run is alive."""

    exit_code = ExitCode.STOPPED

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


class Removed(Refusal):
    """The run's folder is removed, and no process of the run is alive."""

    exit_code = ExitCode.POINTLESS


class Anchor:
    """Keeps hold of the folder that was at `path`, also if its name changes later."""

    def __init__(self, path: Path, epoch: Epoch | None = None) -> None:
        """`epoch`: of this leader, on several nodes."""
        self._path, self._epoch = path, epoch
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def holds(self) -> bool:
        """Whether the folder is at its path, and no later leader has begun. If nobody can look (a file server is away),
        the answer is yes."""
        if self._epoch is not None and self._epoch.is_over():
            return False
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def lost(self) -> Moved | Refusal:
        """Why it does not hold."""
        if (path := self.found()) is None:
            return Removed(
                f"{self._path} was removed while the run was alive; the run is ended, and nothing is left to resume"
            )
        if self._epoch is not None and self._epoch.is_over():
            aside = f"what it has told since is in {self._epoch.events.name}"
            return HeldByAnother(f"{path} is led by {self._epoch.successor()} now: this leader ends; {aside}")
        return Moved(path)

    def found(self) -> Path | None:
        """The present path of the folder. None if it has been removed."""
        try:
            path = Path(os.readlink(f"/proc/self/fd/{self._fd}"))  # noqa: PTH115 (what it is called, not what it leads to)
            return path if os.path.samestat(path.stat(), os.fstat(self._fd)) else None
        except OSError:
            return None
