"""The stacks of all ranks, kept before a hung attempt is killed: py-spy where it works, faulthandler otherwise."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

from supervisor.proctree import Process
from trainer.rundir.environment import STACKS_SIGNAL

PATIENCE = 5.0
"""Seconds for all ranks together: evidence must not hold up the recovery for long."""


def dump(ranks: dict[int, Process], folder: Path) -> dict[int, str]:
    """By rank, the file in `folder` that holds its stacks; a rank that would not give them is missing."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = _by_pyspy(ranks, folder)
    rest = {rank: process for rank, process in ranks.items() if rank not in found}
    return found | _by_signal(rest, folder)


def pyspy() -> str | None:
    """The py-spy program: beside the running interpreter, or on the PATH."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


def _by_pyspy(ranks: dict[int, Process], folder: Path) -> dict[int, str]:
    program = pyspy()
    if program is None:
        return {}
    until = time.monotonic() + PATIENCE
    started = {}
    for rank, process in ranks.items():
        path = folder / f"rank{rank}.txt"
        # Not to wait for a stopped process to stop, --nonblocking; the process is stuck anyway.
        command = [program, "dump", "--nonblocking", "--pid", str(process.pid)]
        with path.open("wb") as file, contextlib.suppress(OSError):
            started[rank] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.DEVNULL)
    found = {}
    for rank, dumper in started.items():
        path = folder / f"rank{rank}.txt"
        try:
            dumper.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            dumper.kill()
            dumper.wait()
        if path.stat().st_size:
            found[rank] = str(path)
        else:
            path.unlink()
    return found


def _by_signal(ranks: dict[int, Process], folder: Path) -> dict[int, str]:
    asked = {}
    for rank, process in ranks.items():
        path = folder / f"rank{rank}.faulthandler.txt"
        # Without the bootstrap's handler the signal would kill the rank before its stacks are known.
        if path.exists() and _handles(process.pid) and process.send(STACKS_SIGNAL):
            asked[rank] = path
    until = time.monotonic() + 1.0
    while time.monotonic() < until and not all(p.stat().st_size for p in asked.values()):
        time.sleep(0.02)
    return {rank: str(path) for rank, path in asked.items() if path.stat().st_size}


def _handles(pid: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (STACKS_SIGNAL - 1) & 1)
    return False
