"""events.jsonl: what happened, one flat JSON line each, written by the supervisor alone, through structlog.

Each line carries ts (ISO, UTC), mono (CLOCK_MONOTONIC seconds), seq (no gaps), level, run, attempt, msg (the event's
name, of the closed set EVENTS) and its own fields. A full disk does not stop a run: lines wait in memory and are written
when there is room again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from datetime import datetime, timezone
from typing import Any

import orjson
import structlog

from trainer.rundir.durable import append_line, mend_tail
from trainer.rundir.layout import RunDir

EVENTS = {
    "run_started": "a supervisor took up the run",
    "takeover": "processes of a supervisor that died were cleaned up",
    "attempt_started": "the launcher of an attempt runs",
    "group_ready": "every rank has registered",
    "resumed": "a rank went on from a checkpoint",
    "data_skipped": "a rank went back, and passes over the data from index `from` up to, not including, `to`",
    "first_step": "the first optimizer step of the attempt is done",
    "caught_up": "the highest step ever reached was reached again",
    "checkpoint_committed": "a checkpoint is durable",
    "checkpoint_failed": "a save failed; training goes on",
    "checkpoint_quarantined": "a bad checkpoint was moved aside",
    "standby_ready": "the next worker group waits, its rendezvous done",
    "standby_lost": "the nursery or the waiting group died, or is of no use, and why",
    "fault_armed": "a fault was asked for",
    "fault_injected": "a fault is about to fire",
    "stop_requested": "somebody asked the run to stop",
    "verdict": "the attempt is over, and why",
    "stacks_dumped": "the stacks of the ranks were kept",
    "signal_sent": "a signal of the stop ladder went out",
    "group_gone": "nothing of the attempt is alive",
    "relaunch_scheduled": "the next attempt is decided",
    "run_ended": "the run is over",
    "warning": "something a person should look at",
}

_KEPT = 10_000


class EventLog:
    """The writer. One a run at a time: the holder of the lock."""

    def __init__(self, run: RunDir, run_id: str) -> None:
        self.attempt = -1
        cut = mend_tail(run.events)
        self._seq = _last_seq(run)
        self._fd = os.open(run.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._waiting: deque[bytes] = deque(maxlen=_KEPT)
        self._dirty = False
        self._log = structlog.wrap_logger(
            self,
            processors=[self._stamp, structlog.processors.EventRenamer("msg"), _render],
            wrapper_class=structlog.BoundLogger,
            cache_logger_on_first_use=True,
        ).bind(run=run_id)
        if cut:
            self.emit("warning", "warning", text=f"cut a torn last line of {cut} bytes off events.jsonl")

    def emit(self, event: str, level: str = "info", **fields: Any) -> None:
        """The event is in the file (not yet synced), or waits in memory while the disk is full."""
        assert event in EVENTS, event
        self._log._proxy_to_logger(level, event, **fields)

    def _stamp(self, _: Any, level: str, fields: Any) -> Any:
        self._seq += 1
        ts = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        own = {key: value for key, value in fields.items() if key != "run"}
        head = {"ts": ts, "mono": round(time.monotonic(), 6), "seq": self._seq, "level": level, "run": fields["run"]}
        return {**head, "attempt": own.pop("attempt", self.attempt), **own}

    def _write(self, line: bytes) -> None:
        self._waiting.append(line)
        self._flush()

    info = warning = error = _write

    def _flush(self) -> None:
        with contextlib.suppress(OSError):
            while self._waiting:
                append_line(self._fd, self._waiting[0])
                self._waiting.popleft()
                self._dirty = True

    def sync(self) -> None:
        """What was written survives a power cut. Called when nothing urgent is left to do."""
        self._flush()
        if self._dirty:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)
            self._dirty = False

    def close(self) -> None:
        self.sync()
        os.close(self._fd)


def _render(_: Any, __: str, fields: Any) -> bytes:
    return orjson.dumps(fields, default=str)


def _last_seq(run: RunDir) -> int:
    try:
        with run.events.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        try:
            return int(orjson.loads(line)["seq"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0
