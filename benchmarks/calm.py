"""No false verdict: a run whose steps, saves and evaluations are slow at random, on a machine that is loaded to the
brim.

python benchmarks/calm.py [--minutes 30] [--step 0.1] [--json FILE]

Two runs at once under stress-ng (or, where that is not installed, busy processes and writers that sync): the built-in
trainer with snapshots and `slow` faults, and an unmodified script. Nothing is wrong with either, so every verdict but
the last is false, and so is a suspicion that was only just dropped (stacks that were asked for).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import ROOT, machine, options, say, show, write

from supervisor.reading.events_file import read_events

SUPERVISE = str(Path(sys.executable).with_name("supervise"))
SCRIPT = ROOT / "benchmarks" / "scripts" / "moody.py"
CORES = len(os.sched_getaffinity(0))
_BUSY = "while True: pass"
_WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
while True:
    os.pwrite(fd, os.urandom(1 << 22), 0)
    os.fsync(fd)
"""


@contextlib.contextmanager
def load(folder: Path) -> Iterator[str]:
    """Every core is wanted twice and the disk is kept busy; gives the words for it."""
    if program := shutil.which("stress-ng"):
        flags = [
            "--cpu",
            str(CORES),
            "--io",
            "2",
            "--hdd",
            "1",
            "--hdd-bytes",
            "256M",
            "--vm",
            "1",
            "--vm-bytes",
            "256M",
        ]
        commands, said = [[program, *flags, "--temp-path", str(folder), "--quiet"]], f"stress-ng {' '.join(flags)}"
    else:
        commands = [[sys.executable, "-c", _BUSY]] * CORES
        commands += [[sys.executable, "-c", _WRITER, str(folder / f"load{n}")] for n in range(2)]
        said = f"{CORES} busy processes, 2 writers that sync"
    started = [subprocess.Popen(command, start_new_session=True) for command in commands]
    try:
        yield said
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def launch(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    folder.mkdir()
    command = [SUPERVISE, "launch", "--quiet", "--run-dir", "run", "--nproc", "2", *arguments]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})


def slow_steps(seed: int, steps: int, usual: float) -> list[str]:
    """--inject for the trainer: now and then a step of either rank sleeps up to twenty times as long as usual."""
    pick = random.Random(seed)
    at = sorted(pick.sample(range(50, max(100, steps)), 40))
    specs = [f"slow:rank={pick.randrange(2)},seconds={1000 * pick.uniform(5, 20) * usual:.0f}ms@step={s}" for s in at]
    return [part for spec in specs for part in ("--inject", spec)]


def told(folder: Path) -> dict[str, Any]:
    events = read_events(folder / "run" / "events.jsonl")[0]
    of = [event["msg"] for event in events]
    fine = ("finished", "stopped_by_user")
    return {
        "verdicts": [e["reason"] for e in events if e["msg"] == "verdict" and e["cause"] not in fine],
        "suspicions": of.count("stacks_dumped"),
        "slow_steps": of.count("fault_injected"),
        "restarts": of.count("relaunch_scheduled"),
        "step": max((e["step"] for e in events if isinstance(e.get("step"), int)), default=-1),
    }


def main() -> None:
    given = options(
        __doc__,
        ("--minutes", {"type": float, "default": 30.0}),
        ("--step", {"type": float, "default": 0.05, "help": "usual seconds of a step of the script"}),
    )
    here, seed = machine(), given.seed if given.seed is not None else 20261124
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        (folder / "load").mkdir()
        small = ["--n-layer", "2", "--n-head", "2", "--n-embd", "64", "--block-size", "64", "--batch-size", "8"]
        steps = int(given.minutes * 60 / 0.03)
        runs = {
            "the trainer": launch(
                folder / "trainer",
                *slow_steps(seed, steps // 4, 0.05),
                "--",
                *small,
                "--data",
                "random",
                "--steps",
                "9999999",
            ),
            "a script": launch(folder / "script", str(SCRIPT), str(given.step), str(seed)),
        }
        end = time.monotonic() + given.minutes * 60
        with load(folder / "load") as said:
            say(f"{given.minutes:g} minutes under {said}")
            while time.monotonic() < end and all(run.poll() is None for run in runs.values()):
                time.sleep(1.0)
        for run in runs.values():
            run.send_signal(signal.SIGINT)
        for run in runs.values():
            run.wait()
        found = {who: told(folder / part) for who, part in zip(runs, ("trainer", "script"), strict=True)}
    false = sum(len(each["verdicts"]) for each in found.values())
    rows = [(who, each["step"], each["restarts"], each["suspicions"]) for who, each in found.items()]
    show(
        f"{given.minutes:g} minutes of load, slow steps, saves and evaluations",
        ("run", "step", "restarts", "suspicions"),
        rows,
    )
    for each in found.values():
        for reason in each["verdicts"]:
            print(f"false: {reason}")
    print(f"verdicts={false}")
    write(given.json, "calm", here, given, {"load": said, "runs": found, "verdicts": false})
    sys.exit(1 if false else 0)


if __name__ == "__main__":
    main()
