"""kill -> first step, several times, on every side in turn; and whether a killed run ends with the same bits.

The learning rate is constant, so a run that was stopped at any step can be compared with one that was to end there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import sides
from kills import recoveries

from trainer.checkpoint.disk.restore import load
from trainer.rundir.layout import newest_checkpoint, step_name

from . import runs
from .correctness import same
from .part import SCRIPTS, Part

GPT = ["-m", "trainer", "--lr", "1e-3", "--min-lr", "1e-3", "--log-every", "1000"]


def measure(part: Part) -> None:
    kills = 2 if part.quick else 5
    root = Path(tempfile.mkdtemp())
    device = ["--device", part.device.type]
    script = [str(SCRIPTS / "gpu_ddp.py"), *device]
    steps, whole = None, None
    with part.trying("built-in"):
        steps = _killed(part, root / "killed", kills)
        # Beside the next side, to save time.
        whole = runs.launch(root / "whole", "--no-standby", *GPT, *device, "--steps", str(steps))
    _side(part, "script, supervise", sides.supervise(1, *sides.ENDLESS), script, kills)
    if whole is not None and steps is not None:
        with part.trying("built-in, bits"):
            _compare(part, root, steps, whole)
    _side(part, "script, torchrun --max-restarts", sides.torchrun(1), script, 1 if part.quick else 3)
    if not part.quick:
        _side(part, "built-in, --no-standby", sides.supervise(1, *sides.ENDLESS, "--no-standby"), [*GPT, *device], 2)
        _side(part, "built-in, torchrun --max-restarts", sides.torchrun(1), [*GPT, *device], 2)


def _side(part: Part, name: str, plan: sides.Plan, workload: list[str], kills: int) -> None:
    with part.trying(name):
        records = recoveries(plan, workload, 1, kills, 2.0)
        part.put(name, records)
        part.tell(name, [record["seconds"] and round(record["seconds"], 3) for record in records])


def _kill(part: Part, folder: Path, number: int, pause: float) -> None:
    """One rank of attempt `number` is killed, when a standby is ready and it has stepped for a while."""
    runs.wait_for(part, lambda: len(runs.events(folder, "first_step")) > number or None, 60, f"no first step {number}")
    runs.wait_for(part, lambda: len(runs.events(folder, "standby_ready")) > number or None, 60, f"no standby {number}")
    time.sleep(pause)

    os.kill(runs.events(folder, "group_ready")[-1]["pids"][0], signal.SIGKILL)


def _killed(part: Part, folder: Path, kills: int) -> int:
    """The built-in GPT, killed and then stopped. Returns the step at which it was stopped."""
    process = runs.launch(folder, *sides.ENDLESS, *GPT, "--device", part.device.type, "--steps", "100000000")
    try:
        for number in range(kills):
            _kill(part, folder, number, 1.5 if number else 3.0)
        runs.wait_for(part, lambda: len(runs.events(folder, "first_step")) > kills or None, 60, "no last first step")
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        process.wait(30 * part.slack)
    finally:
        if process.poll() is None:
            process.kill()
        part.put(
            "built-in",
            {"back_s": runs.back(folder), "report": runs.report(folder), "events": runs.events(folder)[:200]},
        )
    part.tell("built-in, standby, kill -> first step (events)", runs.back(folder))
    return newest_checkpoint(folder / "run" / "checkpoints")


def _compare(part: Part, root: Path, steps: int, whole: subprocess.Popen[bytes]) -> None:
    try:
        if (code := whole.wait(60 * part.slack)) != 0:
            raise RuntimeError(f"ended with {code}: {runs.wrong(root / 'whole')}")
    finally:
        if whole.poll() is None:
            whole.kill()
    ends = list[Any]()
    for folder in (root / "killed", root / "whole"):
        loaded = load(folder / "run" / "checkpoints" / step_name(steps), 0)
        rng = (loaded.own or {}).get("rng", {})
        ends.append([loaded.shared["model"], loaded.shared["optimizer"]["state"], rng.get("cuda"), rng.get("torch")])
    assert same(*ends), f"other bits at step {steps}"
    part.tell(f"built-in, killed, at step {steps}", "the same bits as undisturbed")
