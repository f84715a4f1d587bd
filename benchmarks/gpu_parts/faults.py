"""Faults of a GPU, made for real: what supervise calls them, how fast it sees them, and every word the rank said.

All of them run at once, each in a run of its own: a fault ends the context of its own process only. What the ranks said
becomes input of tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .part import SCRIPTS, Part

FAULTS = {"assert": 1, "illegal": 1, "oom": 1, "spin": 1, "two-nccl": 2}
"""Ranks of each."""


def _start(part: Part, fault: str, ranks: int, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir()
    supervise = Path(sys.executable).with_name("supervise")
    command = [supervise, "launch", "--quiet", "--run-dir", "run", "--nproc", str(ranks), "--max-restarts", "0"]
    more = ["--hang-timeout", "8s", "--backoff", "10ms:10ms", "--no-standby"]
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(
            [*command, *more, str(SCRIPTS / "gpu_fault.py"), fault, "--device", part.device.type],
            cwd=folder,
            env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )


def _told(folder: Path, code: int | None) -> dict[str, Any]:
    """All that is known of that run."""
    run = folder / "run"
    lines = (run / "events.jsonl").read_text().splitlines() if (run / "events.jsonl").exists() else []
    events = [json.loads(line) for line in lines]
    kept = ("verdict", "group_gone", "run_ended", "first_step", "signal_sent", "warning", "attempt_started")
    found: dict[str, Any] = {"exit": code, "said": (folder / "said").read_text(errors="replace")[-3000:]}
    found["events"] = [event for event in events if event["msg"] in kept]
    verdicts = [event for event in events if event["msg"] == "verdict"]
    found["causes"] = [event.get("cause") for event in verdicts]
    gone = [event["mono"] for event in events if event["msg"] == "group_gone"]
    found["stop_s"] = [round(b - a["mono"], 3) for a, b in zip(verdicts, gone, strict=False)]
    for path in sorted(run.glob("attempts/*/*")):
        if path.is_file() and path.name.startswith(("rank", "error", "evidence", "launcher")):
            text = path.read_text(errors="replace")
            found.setdefault("files", {})[f"{path.parent.name}/{path.name}"] = text[:6000] + (
                "…" + text[-6000:] if len(text) > 12000 else text[6000:]
            )
    return found


def measure(part: Part) -> None:
    root = Path.cwd()
    running = {fault: _start(part, fault, ranks, root / fault) for fault, ranks in FAULTS.items()}
    until = time.monotonic() + (50 if part.quick else 75) * part.slack
    found: dict[str, Any] = {}
    while running and time.monotonic() < until:
        for fault, process in list(running.items()):
            if process.poll() is not None:
                del running[fault]
                found[fault] = _told(root / fault, process.returncode)
                part.put("faults", found)
                detected = [event.get("detect_s") for event in found[fault]["events"] if event["msg"] == "verdict"]
                part.tell(
                    fault, f"{found[fault]['causes']}, seen after {detected} s, gone after {found[fault]['stop_s']} s"
                )
        time.sleep(0.1)
    for fault, process in running.items():
        part.put("errors", {**part.found.get("errors", {}), fault: "it has not ended in time"})
        process.terminate()
        found[fault] = _told(root / fault, None)
        part.put("faults", found)
    with part.trying("as it comes"):
        part.put("plain", {fault: _plain(part, fault) for fault in ("assert", "illegal", "oom")})


def _plain(part: Part, fault: str) -> str:
    """What the program says without supervise."""
    command = [sys.executable, str(SCRIPTS / "gpu_fault.py"), fault, "--device", part.device.type]
    return subprocess.run(command, capture_output=True, text=True, timeout=40 * part.slack).stderr[-8000:]
