"""302 M parameters under supervise: the time of steps by how often snapshots are taken, and kill -> first step."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from . import runs
from .part import SCRIPTS, Part, spread


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "log"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _steps(folder: Path) -> list[dict[str, Any]]:
    return [line for line in _lines(folder) if "step" in line]


def _at_step(part: Part, folder: Path, number: int, text: str) -> None:
    runs.wait_for(
        part, lambda: any(line["step"] >= number for line in _steps(folder)) or None, 70, f"{text}: no step {number}"
    )


def measure(part: Part) -> None:
    root = Path(tempfile.mkdtemp())
    few = (40 if part.quick else 120) if part.real else 20
    for every in ("auto", "1", "off") if part.quick else ("auto", "1", "4", "off"):
        with part.trying(f"snapshots {every}"):
            _run(part, root / every, every, few * (3 if every == "auto" else 1))


def _run(part: Part, folder: Path, every: str, steps: int) -> None:
    small = [] if part.real else ["--small"]
    command = [str(SCRIPTS / "gpu_large.py"), "log", "--snapshot-every", every, "--device", part.device.type, *small]
    process = runs.launch(folder, "--max-restarts", "20", *command)
    try:
        try:
            _at_step(part, folder, steps, every)
        finally:
            part.put(f"snapshots {every}", _seen(folder))
        found = part.found[f"snapshots {every}"]
        part.tell(
            f"snapshots {every}", f"step {found['step_ms']}, {found['snapshots']} snapshots in {found['steps']} steps"
        )
        if every == "auto":
            _kills(part, folder, 2 if part.quick else 3)
        # So that all goes at once, and nothing is saved.
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        process.wait(20 * part.slack)
    finally:
        if process.poll() is None:
            process.kill()
    if not _steps(folder):
        raise RuntimeError(runs.wrong(folder))


def _seen(folder: Path) -> dict[str, Any]:
    steps = _steps(folder)
    times = [b["at"] - a["at"] for a, b in pairwise(steps) if a["pid"] == b["pid"]]
    half = len(times) // 3
    return {
        "head": [line for line in _lines(folder) if "start" in line],
        "steps": len(steps),
        "first_ms": [round(1000 * t, 1) for t in times[:20]],
        "step_ms": spread(times[half:]),
        "all_ms": [round(1000 * t, 1) for t in times],
        "item_ms": spread([line["item_s"] for line in steps[half:]]),
        "take_ms": spread([line["took_s"] for line in steps[half:]]),
        "snapshots": len({line["snapshot"] for line in steps if line["snapshot"]}),
        "at": [line["snapshot"] for line in steps],
    }


def _kills(part: Part, folder: Path, kills: int) -> None:
    records = []
    for _ in range(kills):
        runs.wait_for(part, lambda: len(runs.events(folder, "standby_ready")) > len(records) or None, 60, "no standby")
        time.sleep(4.0)
        last = _steps(folder)[-1]
        struck = time.monotonic()
        os.kill(last["pid"], signal.SIGKILL)
        after = runs.wait_for(
            part,
            lambda at=struck, old=last["pid"]: next(
                (x for x in _steps(folder) if x["at"] > at and x["pid"] != old), None
            ),
            60,
            "not back",
        )
        time.sleep(0.5)
        first = [x for x in _steps(folder) if x["pid"] == after["pid"]][:12]
        died = max(x["step"] for x in _steps(folder) if x["pid"] == last["pid"])
        head = [line for line in _lines(folder) if "start" in line][-1]
        between = [round(1000 * (b["at"] - a["at"]), 1) for a, b in pairwise(first)]
        records.append(
            {
                "back_s": after["at"] - struck,
                "died_after": died,
                "first_new": after["step"],
                "head": head,
                "next_ms": between,
            }
        )
        part.put("kills", records)
        part.put("events", runs.events(folder)[-120:])
    part.tell("302 M, kill -> first step's loss", [round(record["back_s"], 3) for record in records])
    part.tell("302 M, steps lost", [record["died_after"] - record["first_new"] + 1 for record in records])
