"""The engine of a group that waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.waiting import until
from trainer.rank.engine.launcher import Exits, _graceful
from trainer.rank.process.children import exit_code
from trainer.rundir.records.gate import Gate

IGNORES = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); sys.stdin.read()"


@pytest.fixture
def ranks() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two that take a TERM for a wish, as a program with a Checkpointer does."""
    command = [sys.executable, "-c", IGNORES]
    found = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for rank in found:
        assert rank.stdout is not None
        rank.stdout.readline()
    yield found
    for rank in found:
        rank.kill()
        rank.communicate()


@pytest.mark.parametrize("released", [False, True])
def test_a_rank_that_dies(tmp_path: Path, ranks: list[subprocess.Popen[bytes]], released: bool) -> None:
    """Where the group still waits, the others have nothing to save, and are killed with it. In an attempt they get
    their time: the engine is not asked."""
    gate, exits = Gate(tmp_path), Exits()
    if released:
        gate.release.touch()
    engine: Any = SimpleNamespace(
        envs={local: {"RANK": str(local)} for local in range(2)},
        pids=lambda: {local: rank.pid for local, rank in enumerate(ranks)},
    )
    asked: list[Any] = []
    poll = _graceful(gate, 600.0, exits)
    os.kill(ranks[0].pid, signal.SIGKILL)

    poll(engine, asked.append)

    assert exits[0].exit_code == -signal.SIGKILL and bool(asked) is not released
    if released:
        assert exit_code(ranks[1].pid) is None
    else:
        assert until(lambda: exit_code(ranks[1].pid)) == -signal.SIGKILL
