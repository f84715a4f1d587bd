"""Runs under supervise (and torchrun) on the GPU, that parts look at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .part import SCRIPTS, Part

SUPERVISE = str(Path(sys.executable).with_name("supervise"))


def launch(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    """supervise launch, in `folder`, with its run in `folder`/run and what it says in `folder`/said."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            [SUPERVISE, "launch", "--quiet", "--run-dir", "run", *command],
            cwd=folder,
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )


def events(folder: Path, *names: str) -> list[dict[str, Any]]:
    path = folder / "run" / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [event for event in found if not names or event["msg"] in names]


def report(folder: Path) -> dict[str, Any]:
    """`supervise report --json`."""
    done = subprocess.run([SUPERVISE, "report", "--json", str(folder / "run")], capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr}
    return found


def wrong(folder: Path) -> str:
    """What the run said, for an error."""
    said = (folder / "said").read_text(errors="replace")[-2000:]
    logs = [path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("run/attempts/*/rank0.log"))[-2:]]
    return "\n──\n".join([said, *logs])


def back(folder: Path) -> list[float]:
    """Seconds from each failure to the first step after it, by the events."""
    found, failed = [], None
    for event in events(folder, "verdict", "first_step"):
        if event["msg"] == "verdict":
            failed = event.get("failed_mono", event["mono"])
        elif failed is not None:
            found.append(round(event["mono"] - failed, 3))
            failed = None
    return found


def two_ranks(part: Part, root: Path) -> None:
    """Two ranks on one GPU (gloo), one killed in the middle: the same bits as undisturbed."""
    script, more = str(SCRIPTS / "gpu_two_ranks.py"), ["--device", part.device.type, "--steps", "60"]
    kill = ["--inject", "kill:rank=1@step=30"]
    folders = [root / "undisturbed", root / "killed"]
    started = [
        launch(folders[0], "--nproc", "2", script, str(folders[0] / "end"), *more),
        launch(folders[1], "--nproc", "2", *kill, script, str(folders[1] / "end"), *more),
    ]
    try:
        for process, folder in zip(started, folders, strict=True):
            code = process.wait(50 * part.slack)
            if code != 0:
                raise RuntimeError(f"ended with {code}: {wrong(folder)}")
    finally:
        for process in started:
            if process.poll() is None:
                process.terminate()
    ends = [torch.load(folder / "end", weights_only=True) for folder in folders]
    resumed = [event["step"] for event in events(folders[1], "resumed")]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True)), "the killed run has other bits"
    part.tell("two ranks on one GPU, gloo, a kill", f"same bits; resumed {resumed}, back after {back(folders[1])} s")


def wait_for(part: Part, what: Any, seconds: float, text: str) -> Any:
    end = time.monotonic() + seconds * part.slack
    while time.monotonic() < end:
        if (found := what()) is not None:
            return found
        time.sleep(0.02)
    raise TimeoutError(text)
