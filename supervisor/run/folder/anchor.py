"""Whether a run's folder is still where it was: a folder that is moved while its run lives would be made anew in its old
place by whoever writes there next, and the run's files would lie in two places."""

from __future__ import annotations

import os
from pathlib import Path

from supervisor.errors import Refusal
from trainer.rundir.codes import ExitCode


class Moved(Exception):
    """The run's folder is at `path` now, and nothing of the run is alive."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path


class Removed(Refusal):
    """The run's folder is nowhere any more, and nothing of the run is alive."""

    exit_code = ExitCode.POINTLESS


class Anchor:
    """Holds on to the folder that was at `path`, whatever it is called later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def holds(self) -> bool:
        """Whether the folder is at its path. What cannot be looked at (a file server that is away) counts as there."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._fd))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def found(self) -> Path | None:
        """Where the folder is now; None if it has been removed."""
        try:
            path = Path(os.readlink(f"/proc/self/fd/{self._fd}"))  # noqa: PTH115 (what it is called, not what it leads to)
            return path if os.path.samestat(path.stat(), os.fstat(self._fd)) else None
        except OSError:
            return None
