"""What it costs to compare the replicas: seconds of all comparisons of a run, as a share of the run.

python benchmarks/replicas.py [--seconds 60] [--nproc 2] [--json FILE]

The built-in GPT, both sizes, under `supervise launch` with its defaults, but without a standby. By the processor, and
by the wall: there most is a rank that waits for the other one, as it would in the step. Aimed at: 0.1 %.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common

SUPERVISE = str(Path(sys.executable).with_name("supervise"))
SCRIPT = Path(__file__).with_name("scripts") / "compared.py"


def measure(flags: list[str], nproc: int, seconds: float) -> list[list[list[float]]]:
    """By rank, the lines of a run that is stopped after so long."""
    with tempfile.TemporaryDirectory() as folder:
        command = [SUPERVISE, "launch", "--quiet", "--no-standby", "--nproc", str(nproc), "--run-dir", "run"]
        command += [str(SCRIPT), folder, *flags, "--steps", "1000000", "--log-every", "100000"]
        run = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            run.wait(seconds)
        except subprocess.TimeoutExpired:
            subprocess.run([SUPERVISE, "stop", "run"], cwd=folder, check=False, capture_output=True)
            run.wait()
        files = [Path(folder, f"rank{rank}") for rank in range(nproc)]
        return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def main() -> None:
    given = common.options(
        __doc__,
        ("--seconds", {"type": float, "default": 60.0}),
        ("--nproc", {"type": int, "default": 2}),
    )
    here, rows, found = common.machine(), list[tuple[object, ...]](), {}
    for model, flags in common.MODELS.items():
        found[model] = ranks = measure(flags, given.nproc, given.seconds)
        for rank, (*each, last) in enumerate(ranks):
            total, cpu, wall = last[2], sum(line[1] for line in each), sum(line[0] for line in each)
            middle = 1000 * statistics.median(line[1] for line in each)
            shares = f"{100 * cpu / total:.3f} %", f"{100 * wall / total:.3f} %"
            rows.append((f"{model}, rank {rank}", f"{total:.0f} s", len(each), f"{middle:.1f} ms", *shares))
    head = ("", "run", "comparisons", "each, CPU", "CPU / run", "wall / run")
    common.show("comparing the replicas", head, rows)
    common.write(given.json, "replicas", here, given, {"lines": found})


if __name__ == "__main__":
    main()
