"""The ranks of one training as if on several nodes, all on this machine. What makes them several nodes is the mark of
their run: it names their shared memory, so none sees that of another."""

from __future__ import annotations

import contextlib
import functools
import json
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


class _Forker:
    """The process of forked_ranks.py: one for all tests of this process, with which it ends."""

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked_ranks"], env=environment(), **pipes
        )

    def start(self, ranks: list[dict[str, Any]]) -> list[int]:
        """Their pids."""
        assert self._process.stdin is not None
        print(json.dumps(ranks), file=self._process.stdin, flush=True)
        return self._told()

    def codes(self) -> list[int]:
        """How those that were started last have ended."""
        return self._told()

    def _told(self) -> list[int]:
        assert self._process.stdout is not None
        found: list[int] = json.loads(self._process.stdout.readline())
        return found


_forker = functools.cache(_Forker)


class Nodes:
    """Nodes of `ranks` ranks each. `place` holds the run folder, which they share."""

    def __init__(self, place: Path, mark: str, ranks: int = 1) -> None:
        self.run, self.digests = place / "run", place / "digests"
        self.checkpoints = self.run / "checkpoints"
        for folder in (self.run, self.digests):
            folder.mkdir(parents=True)
        self._mark, self._ranks = mark, ranks
        self._alive: list[int] = []

    def segment(self, node: int) -> Path:
        """The shared memory of that node."""
        return segment_of(f"{self._mark}-n{node}")

    def train(
        self,
        steps: int,
        *more: str,
        attempt: int | None = None,
        torchrun: bool = False,
        every: int = 4,
        snapshot_every: str = "1",
    ) -> list[Ended]:
        """One attempt, by its ranks, or by a torchrun on each node, until all of these have ended. Without `attempt`
        there is no supervisor."""
        if attempt is not None:
            (self.run / "attempts" / f"{attempt:04d}").mkdir(parents=True, exist_ok=True)
        command = [str(SCRIPT), str(steps), str(self.digests), str(self.checkpoints), str(every), snapshot_every, *more]
        if torchrun:
            return self._torchruns(command)
        port, world = free_port(), 2 * self._ranks
        ranks = []
        for rank in range(world):
            node, local = divmod(rank, self._ranks)
            ours = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": self._ranks}
            told = {**ours, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env = {**environment(), **self._supervised(node, attempt), **{name: str(v) for name, v in told.items()}}
            out = self.run.parent / f"rank{rank}.{attempt}.{port}"
            ranks.append({"env": env, "command": command, "out": str(out)})
        self._alive = _forker().start(ranks)
        codes, self._alive = _forker().codes(), []
        outs = [Path(rank["out"]).read_text() for rank in ranks]
        return [Ended(code, out) for code, out in zip(codes, outs, strict=True)]

    def _torchruns(self, command: list[str]) -> list[Ended]:
        wide = ["--nnodes", "2", "--nproc-per-node", str(self._ranks), "--rdzv-backend", "static"]
        where = ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
        words = [sys.executable, "-m", "torch.distributed.run", *wide, *where]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with contextlib.ExitStack() as stack:
            started = []
            for node in range(2):
                one = [*words, "--node-rank", str(node), *command]
                started.append(stack.enter_context(subprocess.Popen(one, env=environment(), **pipes)))
                stack.callback(started[-1].kill)
            outs = [process.communicate(timeout=180)[0] for process in started]
            return [Ended(process.returncode, out) for process, out in zip(started, outs, strict=True)]

    def _supervised(self, node: int, attempt: int | None) -> dict[str, str]:
        if attempt is None:
            return {}
        mark = f"{self._mark}-n{node}.{attempt}"
        return {"SUPERVISE_RUN_DIR": str(self.run), "SUPERVISE_ATTEMPT": str(attempt), "SUPERVISE_MARK": mark}

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
        if self._alive:
            # The test was given up.
            for pid in self._alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _forker().codes()
        for node in range(3):
            shutil.rmtree(self.segment(node), ignore_errors=True)


@contextlib.contextmanager
def nodes(place: Path, mark: str, ranks: int = 1) -> Iterator[Nodes]:
    made = Nodes(place, mark, ranks)
    try:
        yield made
    finally:
        made.close()
