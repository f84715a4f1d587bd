"""Two supervisors, one that leads and one that follows, on two addresses of one machine: one run."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from supervisor.live.mirror import all_beats
from supervisor.process.proctree import marked
from tests.support.launched import Launched, environment
from tests.support.supervised import SUPERVISE, Run, start
from tests.support.waiting import until
from trainer.rundir.machine import shm

OTHER = "127.0.0.2"


class Two(Run):
    """A run over two nodes. The supervisor of node 1 is `other`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.nnodes = "2"
        self.lease = "20s"
        """Longer than this machine may stand still. What a lease does is no matter of most tests."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.where = f"127.0.0.1:{free.getsockname()[1]}"
        self.other: subprocess.Popen[str] | Launched | None = None
        self.before = {path.name for path in shm.ROOT.iterdir()}

    def lead(self, *arguments: str, nproc: int = 1, program: Sequence[str] | None = None) -> None:
        self.start(*self._nodes(0, nproc), *arguments, program=program)

    def follow(self, *arguments: str, nproc: int = 1, folder: str = "run", address: str = OTHER) -> None:
        own = ["launch", "--run-dir", folder, *self._nodes(1, nproc), "--local-addr", address, *arguments]
        with (self.folder / "out1").open("a") as out, (self.folder / "err1").open("a") as err:
            self.other = start([SUPERVISE, *own], self.folder, environment(), out, err)

    def _nodes(self, node: int, nproc: int) -> list[str]:
        return [
            "--nnodes",
            self.nnodes,
            "--lease",
            self.lease,
            "--node-rank",
            str(node),
            "--rdzv-endpoint",
            self.where,
            "--nproc",
            str(nproc),
        ]

    def until_stepped(self, attempt: int = 0) -> None:
        """Both ranks of the attempt have made a step."""
        folder = self.dir.attempt(attempt)
        until(lambda: [beat.rank for beat in all_beats(folder) if beat.step > 0] == [0, 1])

    def ended(self, seconds: float = 60.0) -> tuple[int, int]:
        """The exit codes of both supervisors. Nothing of the run is left."""
        assert self.process is not None and self.other is not None
        codes = self.process.wait(seconds), self.other.wait(seconds)
        self.assert_nothing_left()
        assert marked(f"{self.mark()}-n1") == []
        left = {path.name for path in shm.ROOT.iterdir() if path.name.startswith("supervise-")} - self.before
        assert not [name for name in left if self.mark() in name]
        return codes

    def said(self) -> str:
        """What the supervisor of node 1 has said to its user."""
        return (self.folder / "err1").read_text()

    def kill(self) -> None:
        if self.other is not None and self.other.poll() is None:
            self.other.kill()
            self.other.wait()
        if self.dir.run_json.exists():
            for process in marked(f"{self.mark()}-n1"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            shm.remove(shm.segment_of(f"{self.mark()}-n1"))
        super().kill()
