"""A run directory as a supervisor would leave it, made by hand for tests of its readers."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

from trainer.rundir.layout import RunDir

EPOCH = datetime.datetime(2026, 11, 24, 2, 0, tzinfo=datetime.timezone.utc).timestamp()


def mark_of(name: str) -> str:
    """The mark of the run with that name. Another test process has other marks: processes are found by them."""
    return f"mark-{os.getpid()}-{name}"


class Writer:
    """Writes events and logs of a run whose clock starts at EPOCH."""

    def __init__(self, path: Path, name: str = "gpt-7f3a") -> None:
        path.mkdir(parents=True)
        self.run = RunDir(path)
        self.name = name
        self.seq = 0
        spec = {"schema": 1, "run": name, "created": "2026-11-24T02:00:00Z", "mark": mark_of(name)}
        spec["inode"] = path.stat().st_ino
        self.run.run_json.write_text(json.dumps(spec))

    def event(self, name: str, at: float = 0.0, attempt: int = 0, level: str = "info", **fields: Any) -> dict[str, Any]:
        """The event is in events.jsonl, as if written `at` seconds after EPOCH."""
        self.seq += 1
        ts = datetime.datetime.fromtimestamp(EPOCH + at, datetime.timezone.utc).isoformat(timespec="milliseconds")
        event = {
            "ts": ts.replace("+00:00", "Z"),
            "mono": at,
            "seq": self.seq,
            "level": level,
            "run": self.name,
            "attempt": attempt,
            "msg": name,
            **fields,
        }
        with self.run.events.open("ab") as file:
            file.write(json.dumps(event).encode() + b"\n")
        return event

    def log(self, text: bytes, attempt: int = 0, rank: int | None = 0, at: float = 0.0) -> Path:
        """`text` is at the end of the log of `rank` (None: the launcher), last written `at` seconds after EPOCH."""
        folder = self.run.attempt(attempt)
        folder.path.mkdir(parents=True, exist_ok=True)
        path = folder.launcher_log if rank is None else folder.rank_log(rank)
        with path.open("ab") as file:
            file.write(text)
        os.utime(path, (EPOCH + at, EPOCH + at))
        return path


def recovered_run(path: Path) -> Writer:
    """Two attempts of two ranks: rank 1 is killed at step 40, the second attempt finishes."""
    w = Writer(path)
    w.event("run_started", 0, attempt=-1)
    w.event("attempt_started", 1)
    w.log(b"starting ranks\n", rank=None, at=2)
    w.log(b"".join(b"step %d\n" % n for n in range(42)), at=10)
    w.log(b"step 41\n", rank=1, at=9)
    w.event("verdict", 11, level="error", cause="killed", rank=1, signal=9, step=41, reason="rank 1 was killed")
    w.event("relaunch_scheduled", 12, level="warning", delay_s=0.0, checkpoint_step=40, reason="restart 1 of 3")
    w.event("attempt_started", 13, attempt=1)
    w.event("resumed", 14, attempt=1, step=40, source="memory")
    w.log(b"step 42\nstep 43\n", attempt=1, at=20)
    w.log(b"step 42\n", attempt=1, rank=1, at=20)
    w.event("run_ended", 21, attempt=1, exit_code=0, state="finished", reason="finished at step 43")
    return w
