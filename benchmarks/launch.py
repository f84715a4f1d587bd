"""Launch to the first optimizer step of every rank, on the same program: torchrun, supervise, and supervise once more
with the fork server that the launch before has left (--keep-warm).

The sides take turns in one folder, each launch a whole run of some steps, so that all find the same caches. The first
launch of supervise in a fresh user cache knows none of the program's imports yet; it is run before anything counts. The
time begins before the command is started and ends in the rank, by the hook that is the same on every side.

python benchmarks/launch.py [--rounds 5] [--script FILE] [--model small|default] [--json FILE]
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import sides
from steps import StepLog

from supervisor.group import kept
from supervisor.reading.events_file import read_events

WARM = "supervise --keep-warm, again"
KEPT = "2m"
TIME_LIMIT = 120.0
_STAY = ("cache", "steps", "supervise")


class Folder:
    """Where all sides are launched in turn, with the same environment."""

    def __init__(self, path: Path, nproc: int) -> None:
        self._path, self._nproc = path, nproc
        self._steps, self._seen, self._runs = StepLog(path / "steps"), set[int](), 0
        self._env = sides.environment(path) | {"XDG_RUNTIME_DIR": str(path)}

    def launch(self, plan: sides.Plan, workload: list[str]) -> dict[str, Any]:
        """A whole run."""
        self._runs += 1
        for path in self._path.iterdir():
            # What an earlier run has saved would be gone on from.
            if path.name not in _STAY:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        run = f"run{self._runs}"
        command = [run if word == "run" else word for word in plan.command]
        begin = time.monotonic()
        with (self._path / "output").open("wb") as output:
            process = subprocess.Popen(
                [*command, *workload],
                cwd=self._path,
                env=self._env | dict(plan.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                code = process.wait(TIME_LIMIT)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        first = self._steps.first_after(self._seen, self._nproc, begin)
        if code != 0 or first is None:
            raise RuntimeError(f"{plan.name} ended with {code}:\n{(self._path / 'output').read_text()[-3000:]}")
        self._seen |= {step.pid for step in self._steps.steps}
        found: dict[str, Any] = {"side": plan.name, "seconds": max(step.at for step in first) - begin}
        if plan.supervised:
            events = read_events(self._path / run / "events.jsonl")[0]
            at = {event["msg"]: event["mono"] - begin for event in reversed(events)}
            found["events"] = {name: at[name] for name in STAGES if name in at}
        return found


STAGES = ("run_started", "fork_server_taken", "attempt_started", "group_ready", "resumed", "first_step")


def main() -> None:
    here = common.machine()
    given = common.options(
        __doc__,
        ("--rounds", {"type": int, "default": 5}),
        ("--nproc", {"type": int, "default": 2}),
        ("--steps", {"type": int, "default": 100, "help": "of each run"}),
        ("--model", {"choices": list(common.MODELS), "default": "small"}),
        ("--script", {"type": Path, "help": "in place of the built-in GPT, one that takes --steps"}),
    )
    script = [str(given.script.resolve())] if given.script else ["-m", "trainer", *common.MODELS[given.model]]
    workload = [*script, "--steps", str(given.steps)]
    warm = sides.supervise(given.nproc, "--keep-warm", KEPT, name=WARM)
    plans = [sides.torchrun(given.nproc), sides.supervise(given.nproc), warm]
    samples: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bench-launch-") as folder:
        place = Folder(Path(folder), given.nproc)
        place.launch(plans[1], workload)
        place.launch(warm, workload)
        for number in range(1, given.rounds + 1):
            for plan in plans:
                samples.append({"round": number, **place.launch(plan, workload)})
                common.say(f"round {number}, {plan.name}: {samples[-1]['seconds']:.2f} s")
        _end(Path(folder))
    by = {plan.name: [s["seconds"] for s in samples if s["side"] == plan.name] for plan in plans}
    seconds = {name: common.summary(values) for name, values in by.items()}
    against = seconds["torchrun"]["p50"]
    rows = [
        (name, s["n"], *(f"{s[key]:.2f}" for key in ("min", "p50", "max")), f"{s['p50'] / against:.2f} ×")
        for name, s in seconds.items()
    ]
    common.show("Launch to the first step of every rank, seconds", ("", "runs", "min", "p50", "max", "torchrun"), rows)
    warm_ones = [s["events"] for s in samples if s["side"] == WARM]
    rows = [
        (
            name,
            *(f"{1000 * common.summary([e[name] for e in warm_ones if name in e])[key]:.0f}" for key in ("min", "p50")),
        )
        for name in STAGES
    ]
    common.show(f"{WARM}: milliseconds from the launch", ("", "min", "p50"), rows)
    common.write(given.json, "launch", here, given, {"seconds": seconds, "samples": samples})


def _end(folder: Path) -> None:
    """What was kept is gone."""
    for path in (folder / "supervise").glob("*.sock"):
        if (one := kept.at(path)) is not None:
            kept.end(one)


if __name__ == "__main__":
    main()
