"""The ranks of one training as if on several nodes, all on this machine. What makes them several nodes is the mark of
their run: it names their shared memory, so none sees that of another."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.jobs import ROOT, environment
from tests.support.ports import free_port
from trainer.rundir.machine.shm import segment_of

SCRIPT = ROOT / "tests" / "support" / "node_trainer.py"


class Ended(NamedTuple):
    """The end of a process, and all that it has said."""

    code: int
    text: str


def _python(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *command], env=env, start_new_session=True, **pipes)


class Nodes:
    """Nodes of `ranks` ranks each. `place` holds the run folder, which they share."""

    def __init__(self, place: Path, mark: str, ranks: int = 1) -> None:
        self.run, self.digests = place / "run", place / "digests"
        self.checkpoints = self.run / "checkpoints"
        for folder in (self.run, self.digests):
            folder.mkdir(parents=True)
        self._mark, self._ranks = mark, ranks
        self._alive: list[subprocess.Popen[str]] = []

    def segment(self, node: int) -> Path:
        """The shared memory of that node."""
        return segment_of(f"{self._mark}-n{node}")

    def train(self, steps: int, *more: str, attempt: int | None = None, **options: Any) -> list[Ended]:
        """One attempt, until all of its processes have ended. Without `attempt` there is no supervisor."""
        return self.end(self.start(steps, *more, attempt=attempt, **options))

    def start(
        self,
        steps: int,
        *more: str,
        attempt: int | None = None,
        nodes: tuple[int, ...] = (0, 1),
        torchrun: bool = False,
        every: int = 4,
        snapshot_every: str = "1",
    ) -> list[subprocess.Popen[str]]:
        """The ranks of one attempt, or a torchrun on each node."""
        port = free_port()
        if attempt is not None:
            (self.run / "attempts" / f"{attempt:04d}").mkdir(parents=True, exist_ok=True)
        command = [str(SCRIPT), str(steps), str(self.digests), str(self.checkpoints), str(every), snapshot_every, *more]
        started = []
        for number, node in enumerate(nodes):
            env = {**environment(), **self._supervised(node, attempt)}
            if torchrun:
                static = ["--nnodes", str(len(nodes)), "--node-rank", str(number), "--rdzv-backend", "static"]
                where = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
                wide = ["--nproc-per-node", str(self._ranks)]
                started.append(_python(["-m", "torch.distributed.run", *static, *where, *wide, *command], env))
                continue
            for local in range(self._ranks):
                rank, world = number * self._ranks + local, len(nodes) * self._ranks
                ours = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": self._ranks}
                where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                started.append(_python(command, {**env, **{name: str(v) for name, v in {**ours, **where}.items()}}))
        self._alive += started
        return started

    def _supervised(self, node: int, attempt: int | None) -> dict[str, str]:
        if attempt is None:
            return {}
        mark = f"{self._mark}-n{node}.{attempt}"
        return {"SUPERVISE_RUN_DIR": str(self.run), "SUPERVISE_ATTEMPT": str(attempt), "SUPERVISE_MARK": mark}

    def end(self, started: list[subprocess.Popen[str]]) -> list[Ended]:
        """How they have ended."""
        outputs = [process.communicate(timeout=90)[0] for process in started]
        return [Ended(process.returncode, output) for process, output in zip(started, outputs, strict=True)]

    def lines(self, attempt: int | str, world: int = 2) -> list[dict[int, str]]:
        """By rank, the digest after each step of that attempt."""
        found = []
        for rank in range(world):
            lines = (self.digests / f"rank{rank}.{attempt}").read_text().splitlines()[1:]
            found.append({int(line.split(" ", 1)[0]): line.split(" ", 1)[1] for line in lines})
        return found

    def began(self, attempt: int | str, world: int = 2) -> list[int]:
        """The step from which each rank of that attempt went on."""
        firsts = [(self.digests / f"rank{rank}.{attempt}").read_text().splitlines()[0] for rank in range(world)]
        return [int(first.removeprefix("from ")) for first in firsts]

    def close(self) -> None:
        """Nothing of them is alive, or left in shared memory."""
        for process in self._alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
        for node in range(3):
            shutil.rmtree(self.segment(node), ignore_errors=True)


@contextlib.contextmanager
def nodes(place: Path, mark: str, ranks: int = 1) -> Iterator[Nodes]:
    made = Nodes(place, mark, ranks)
    try:
        yield made
    finally:
        made.close()
