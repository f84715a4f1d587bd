"""Crash detection: SIGKILL of a rank to the verdict in events.jsonl, in milliseconds, over several kills of one run.

python benchmarks/detect.py [--kills 10] [--nproc 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _supervise  # noqa: F401 (from here on our other names are served)

from supervisor.reading.events_file import read_events

SUPERVISE = str(Path(sys.executable).with_name("supervise"))
SCRIPT = "import time\nwhile True: time.sleep(0.01)"


def wait_for(path: Path, name: str, count: int) -> dict[str, Any]:
    """The `count`-th event of that name."""
    while True:
        found = [event for event in read_events(path)[0] if event["msg"] == name]
        if len(found) >= count:
            return found[count - 1]
        time.sleep(0.02)


def measure(kills: int, nproc: int) -> list[float]:
    """Milliseconds from each kill to its verdict."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "script.py").write_text(SCRIPT)
        limits = ["--max-restarts", "1000", "--no-progress-limit", "1000", "--backoff", "1ms:1ms"]
        command = [SUPERVISE, "launch", "--quiet", "--run-dir", "run", "--nproc", str(nproc), *limits, "script.py"]
        supervisor = subprocess.Popen(command, cwd=folder)
        events = Path(folder, "run", "events.jsonl")
        for number in range(1, kills + 1):
            pids = wait_for(events, "group_ready", number)["pids"]
            # At a random moment of the supervisor's tick.
            time.sleep(random.uniform(0.3, 0.6))
            struck = time.monotonic()
            os.kill(random.choice(pids), signal.SIGKILL)
            found.append(1000.0 * (wait_for(events, "verdict", number)["mono"] - struck))
        supervisor.send_signal(signal.SIGINT)
        supervisor.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times = measure(options.kills, options.nproc)
    result = {"nproc": options.nproc, "kills": len(times), "p50_ms": statistics.median(times), "max_ms": max(times)}
    print(f"{len(times)} kills of one of {options.nproc} ranks: verdict after {result['p50_ms']:.1f} ms (median), "
          f"{result['max_ms']:.1f} ms (worst)")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps({**result, "times_ms": times}, indent=1))


if __name__ == "__main__":
    main()
