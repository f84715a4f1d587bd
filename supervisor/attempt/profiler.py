"""Samples of the ranks' stacks over some seconds, taken from outside by py-spy."""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.attempt.stacks import pyspy
from supervisor.core.telling.profile import counted
from supervisor.errors import Refusal
from supervisor.process.kill import kill_child

_SAMPLES = 200.0
"""Samples a second, of all ranks together. Each reads the memory of a rank, and costs a part of a millisecond."""
_SLACK = 20.0
"""Seconds that py-spy may take longer: it reads the symbols of every library first."""


@dataclass
class Profile:
    """By rank: the samples at each place. A rank that could not be sampled has none, and `problem` says why."""

    samples: dict[int, Counter[str]] = field(default_factory=dict)
    problem: str = ""


def profile(pids: Mapping[int, int], seconds: float) -> Profile:
    """The main threads of the processes, sampled at the same time. Refusal without py-spy."""
    program = pyspy()
    if program is None:
        raise Refusal("py-spy is not installed; install it with: pip install py-spy")
    rate = max(1, min(100, int(_SAMPLES / len(pids))))
    found = Profile()
    with tempfile.TemporaryDirectory(prefix="supervise-") as folder, ExitStack() as stack:
        outputs = {rank: Path(folder) / f"rank{rank}" for rank in pids}
        running = {}
        for rank, pid in pids.items():
            how = ["--format", "raw", "--rate", str(rate), "--duration", str(max(1, round(seconds)))]
            how += ["--threads", "--idle", "--nonblocking", "--full-filenames"]
            command = [program, "record", *how, "--output", str(outputs[rank]), "--pid", str(pid)]
            running[rank] = stack.enter_context(_started(command))
        for rank, process in running.items():
            try:
                _, said = process.communicate(timeout=seconds + _SLACK)
            except subprocess.TimeoutExpired:
                said = "py-spy took too long"
            path = outputs[rank]
            found.samples[rank] = counted(path.read_text(errors="replace")) if path.exists() else Counter()
            if not found.samples[rank]:
                found.problem = (said.strip().splitlines() or [""])[-1].removeprefix("Error: ")
    return found


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, which does not outlive the block."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_child(process.pid)
        process.communicate()
