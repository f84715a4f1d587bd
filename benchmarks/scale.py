"""Scale: how fast many ranks are seen to fail and are gone, and how fast a run of 100,000 events is read.

The ranks are tiny (a script that sleeps and does not import torch). Each number of ranks has its own run, in which one
random rank after the other is killed with SIGKILL: detect is kill to verdict, stop is verdict to nothing of the attempt
alive. The long run is made by the supervisor's own event writer, and read by the commands as a user runs them. About a
minute.

python benchmarks/scale.py [--ranks 2,8,32] [--kills 10] [--events 100000] [--json FILE]
"""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import sides
from kills import strike
from sides import Side

from supervisor.run import spec as specs
from supervisor.run.events import EventLog
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir

SCRIPT = "import time\nwhile True: time.sleep(0.05)\n"
COMMANDS = (
    ("status", "--json"),
    ("report", "--json"),
    ("tail", "--no-follow", "-n", "50"),
    ("events", "--json"),
)


def event(side: Side, name: str, count: int) -> dict[str, Any]:
    """The `count`-th of that name."""

    def found() -> dict[str, Any] | None:
        side.check()
        events = side.events(name)
        return events[count - 1] if len(events) >= count else None

    return common.until(found, 60.0, f"{name} {count}")


def detect(ranks: int, kills: int) -> dict[str, Any]:
    """One run of so many ranks; `refused` has the reason where supervise will not start them on this machine."""
    samples = []
    with tempfile.TemporaryDirectory(prefix="bench-script-") as folder:
        script = Path(folder, "script.py")
        script.write_text(SCRIPT)
        plan = sides.supervise(ranks, *sides.ENDLESS, "--backoff", "1ms:1ms")
        with Side(plan, [str(script)]) as side:
            for number in range(1, kills + 1):
                try:
                    ready = event(side, "group_ready", number)
                except RuntimeError:
                    if side.process.returncode != 2:
                        raise
                    return {"ranks": ranks, "refused": side.output().strip(), "samples": []}
                time.sleep(random.uniform(0.5, 1.0))
                struck = strike(random.choice(ready["pids"]))
                verdict, gone = event(side, "verdict", number)["mono"], event(side, "group_gone", number)["mono"]
                again = event(side, "group_ready", number + 1)["mono"]
                stretches = {"detect_s": verdict - struck, "stop_s": gone - verdict, "ready_again_s": again - gone}
                samples.append(stretches)
    return {"ranks": ranks, "samples": samples}


def long_run(path: Path, events: int) -> int:
    """A run of so many events is at `path`, with a log for its last attempts; returns the bytes of events."""
    run = RunDir(path)
    path.mkdir()
    specs.save(run, Spec("long-0000", "0" * 16, ("script.py",), False, 2, str(path)))
    log = EventLog(run, "long-0000")
    log.emit("run_started")
    attempt, step, written = 0, 0, 1
    while written < events - 1:
        log.attempt = attempt
        body: list[tuple[str, dict[str, Any]]] = [
            ("attempt_started", {"launcher_pid": 1, "nproc": 2, "checkpoint_step": step}),
            ("group_ready", {"pids": [2, 3]}),
            ("resumed", {"rank": 0, "step": step, "source": "disk"}),
            ("first_step", {"step": step + 1, "from_step": step, "lost_steps": 0}),
            ("standby_ready", {"kind": "fork", "launcher_pid": 4, "pids": [5, 6], "forkserver_pid": 7}),
        ]
        for _ in range(20):
            step += 50
            body.append(("checkpoint_committed", {"step": step, "bytes": 10_000_000, "seconds": 0.02}))
        body += [
            ("verdict", {"cause": "killed", "rank": 1, "signal": 9, "step": step, "failed_mono": time.monotonic()}),
            ("group_gone", {"stop_s": 0.01, "step": step}),
            ("relaunch_scheduled", {"delay_s": 0.0, "counted": True, "best_step": step, "checkpoint_step": step}),
        ]
        for name, fields in body[: events - 1 - written]:
            log.emit(name, **fields)
            written += 1
        folder = run.attempt(attempt)
        folder.path.mkdir(parents=True)
        for rank in range(2):
            folder.rank_log(rank).write_text("".join(f"step {n}  loss 2.0\n" for n in range(step - 1000, step, 10)))
        attempt += 1
    log.emit("run_ended", exit_code=0, state="finished", step=step, reason="finished")
    log.close()
    return run.events.stat().st_size


def read(events: int, times: int) -> dict[str, Any]:
    """Seconds of each command on the long run."""
    with tempfile.TemporaryDirectory(prefix="bench-long-") as folder:
        path = Path(folder, "run")
        size = long_run(path, events)
        found: dict[str, list[float]] = {}
        for name, *flags in COMMANDS * times:
            begin = time.monotonic()
            subprocess.run([sides.SUPERVISE, name, *flags, str(path)], stdout=subprocess.DEVNULL, check=True)
            found.setdefault(" ".join([name, *flags]), []).append(time.monotonic() - begin)
    return {"events": events, "bytes": size, "seconds": found}


def main() -> None:
    here = common.machine()
    given = common.options(
        __doc__,
        ("--ranks", {"default": "2,8,32", "metavar": "N,…"}),
        ("--kills", {"type": int, "default": 10, "help": "in each run"}),
        ("--events", {"type": int, "default": 100_000}),
        ("--times", {"type": int, "default": 7, "help": "each command is run"}),
    )
    random.seed(given.seed)
    runs = [detect(int(ranks), given.kills) for ranks in given.ranks.split(",")]
    rows = []
    for run in runs:
        for name in ("detect", "stop", "ready_again") if run["samples"] else ():
            s = common.summary([sample[f"{name}_s"] for sample in run["samples"]])
            cells = [f"{1000 * s[key]:.1f}" for key in ("min", "p50", "p95", "max")]
            rows.append((f"{run['ranks']} ranks, {name.replace('_', ' ')}", s["n"], *cells))
        if "refused" in run:
            rows.append((f"{run['ranks']} ranks", "refused", *"----"))
    common.show("SIGKILL of a rank, milliseconds", ("", "kills", "min", "p50", "p95", "max"), rows)
    for run in runs:
        if "refused" in run:
            print(f"{run['ranks']} ranks: {run['refused']}")
    reading = read(given.events, given.times)
    rows = []
    for name, seconds in reading["seconds"].items():
        s = common.summary(seconds)
        rows.append((name, s["n"], *(f"{s[key]:.3f}" for key in ("min", "p50", "p95", "max"))))
    size = reading["bytes"] / 1e6
    common.show(
        f"A run of {given.events:,} events, {size:.0f} MB, seconds", ("", "runs", "min", "p50", "p95", "max"), rows
    )
    common.write(given.json, "scale", here, given, {"runs": runs, "reading": reading})


if __name__ == "__main__":
    main()
