"""A worker group from its order to its release: forked by the nursery or started cold, it waits at its gate."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

from supervisor.proctree import Process
from trainer.rundir.gate import Gate
from trainer.rundir.layout import AttemptDir


class Gang:
    """Ordered when it is made. Its launcher has a pid once it is `born`; its ranks wait at the gate once it is `parked`."""

    def __init__(self, folder: Path, nproc: int, kind: str) -> None:
        """`kind` is fork or exec. OSError where the gate cannot be made."""
        self.gate = Gate(folder)
        self.kind = kind
        self.nproc = nproc
        self.launcher: Process | None = None
        self.knows = 0
        """How much its nursery had learned when it was forked."""
        self.stillborn = False
        """Whoever was to make it is gone: it will never have a launcher."""
        self._fd: int | None = self.gate.close()
        self.gate.launcher_log.touch(0o600)

    def born(self, pid: int) -> None:
        """Its launcher has this pid. ProcessLookupError if it is gone already."""
        self.launcher = Process(pid)

    @property
    def parked(self) -> bool:
        """Whether every rank waits at the gate."""
        return self.launcher is not None and all(self.gate.ready(rank).exists() for rank in range(self.nproc))

    def release(self, body: dict[str, Any], attempt: AttemptDir) -> None:
        """Its ranks go on as the attempt; those that are not at the gate yet will not wait there."""
        assert self._fd is not None
        with contextlib.suppress(OSError):
            # The launcher writes on into the file, by whichever name.
            os.link(self.gate.launcher_log, attempt.launcher_log)
        fd, self._fd = self._fd, None
        self.gate.open(fd, body)

    def rank_pids(self) -> list[int]:
        """Of the ranks that have come to the gate."""
        found = []
        for rank in range(self.nproc):
            with contextlib.suppress(OSError, ValueError):
                found.append(int(self.gate.ready(rank).read_text()))
        return found

    def dissolve(self) -> None:
        """The gate is shut for good: nobody waits for this supervisor any more. Its folder is gone."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self.launcher is not None:
            self.launcher.close()
            self.launcher = None
        shutil.rmtree(self.gate.path, ignore_errors=True)
