"""This node's own folder, for what works on one machine only: the lease word, gates, beats. One supervisor has it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from supervisor.errors import HeldByAnother, Refusal
from trainer.rundir.files.flock import locked
from trainer.rundir.machine import shm

_SUFFIX = ".place"
_TIME_LIMIT, _AGAIN = 0.5, 0.02
"""Seconds to try. `supervise gc` takes a folder for a moment, to learn whether it is abandoned."""


class Own:
    """The folder, empty and private. It is ours until close(), or until this process dies in any way."""

    def __init__(self, asked: str | None, token: bytes, address: str) -> None:
        """It is in `asked`, or in shared memory, and has its name by the run and by the address of this node. Refusal
        if it cannot be used, or if another supervisor has it."""
        if problem := "" if asked else shm.problem():
            raise Refusal(f"{problem}; give a folder of this node for what cannot be on a shared disk: --local-dir DIR")
        name = f"supervise-{hashlib.sha256(token + address.encode()).hexdigest()[:16]}{_SUFFIX}"
        self.path = Path(asked or shm.ROOT) / name
        self._held = contextlib.ExitStack()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            until = time.monotonic() + _TIME_LIMIT
            while not (ours := self._take()) and time.monotonic() < until:
                time.sleep(_AGAIN)
            if ours:
                _empty(self.path)
        except OSError as error:
            self._held.close()
            raise Refusal(f"{self.path} cannot be used: {error.strerror or error}; see --local-dir") from None
        if not ours:
            self._held.close()
            raise HeldByAnother(
                f"another supervisor of this run is node {address} here: give each node an address of its own "
                "(--local-addr)"
            )

    def _take(self) -> bool:
        """Whether the folder is there, and ours."""
        with contextlib.ExitStack() as held, contextlib.suppress(FileNotFoundError):
            shm.claim(self.path)
            fd = _opened(self.path)
            # Whoever had it before us may have removed it.
            if held.enter_context(locked(fd, wait=False)) and os.path.samestat(os.fstat(fd), self.path.lstat()):
                self._held = held.pop_all()
                return True
        return False

    def close(self) -> None:
        """The folder is gone."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._held.close()


def abandoned(root: Path = shm.ROOT) -> Iterator[Path]:
    """The folders in `root` of this user's supervisors that are dead."""
    for path in sorted(root.glob(f"supervise-*{_SUFFIX}")):
        with contextlib.suppress(OSError):
            if shm.is_private(path):
                with locked(_opened(path), wait=False) as free:
                    if free:
                        yield path


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _empty(path: Path) -> None:
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
