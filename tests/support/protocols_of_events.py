"""How events are written and taken up again after a crash."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supervisor.reading.events_file import read_events
from supervisor.run.events import EventLog
from supervisor.run.status import story_of
from tests.support.kernel import Recorder
from tests.support.protocols import Marks, Protocol
from tests.support.waiting import until
from trainer.rundir.layout import RunDir

Allowed = Callable[[Marks, Any], str | None]
LONG = "x" * 3000
"""So that events lie across pages."""


def run_of(root: Path) -> RunDir:
    return RunDir(root / "runs" / "gpt")


def made_in(root: Path) -> None:
    run_of(root).path.mkdir(parents=True)


def synced(log: EventLog, recorder: Recorder) -> None:
    """The sync, which a thread of its own does, is over."""
    recorder.barrier()
    log.sync()
    until(lambda: not log._file._syncer._busy)
    recorder.barrier()


def _emit(root: Path, recorder: Recorder) -> None:
    log = EventLog(run_of(root), "gpt")
    for number in range(4):
        log.emit("warning", text=LONG, number=number)
        if number % 2:
            synced(log, recorder)
            recorder.mark(str(number))
    log.close()


def _emit_to_torn(root: Path, recorder: Recorder) -> None:
    """The next supervisor, on the file of one that died in the middle of a line."""
    _emit(root, recorder)


def _torn_events(root: Path) -> None:
    made_in(root)
    log = EventLog(run_of(root), "gpt")
    log.emit("run_started")
    log.close()
    with run_of(root).events.open("ab") as file:
        file.write(b'{"msg":"verdict","text":"' + b"y" * 6000)


def _events(root: Path) -> dict[str, Any]:
    """What the next supervisor reads, and whether what it then writes is read."""
    run = run_of(root)
    if not run.path.is_dir():
        return {"numbers": [], "started": 0, "next": True}
    before, _ = read_events(run.events)
    story_of(run)
    log = EventLog(run, "gpt")
    log.emit("run_ended", state="finished", exit_code=0)
    log.close()
    after, _ = read_events(run.events)
    last = max((event.get("seq", 0) for event in before), default=0)
    return {
        "numbers": [event["number"] for event in before if "number" in event],
        "started": sum(event["msg"] == "run_started" for event in before),
        "made up": [event for event in before if "seq" not in event],
        "next": after[: len(before)] == before and after[-1]["msg"] == "run_ended" and after[-1]["seq"] > last,
        "state": story_of(run).state,
    }


def _taken_up(root: Path) -> None:
    log = EventLog(run_of(root), "gpt")
    log.emit("run_started")
    os.close(log._file._fd)


def _synced_are_there(started: int) -> Allowed:
    def allowed(marks: Marks, seen: dict[str, Any]) -> str | None:
        durable = max(map(int, marks), default=-1)
        if not set(range(durable + 1)) <= set(seen["numbers"]) or seen["started"] < started:
            return f"synced up to {durable}, found {seen}"
        if seen["numbers"] != sorted(set(seen["numbers"])):
            return f"out of order: {seen['numbers']}"
        if seen.get("made up"):
            return f"parts of two events make a third: {seen['made up']}"
        return (
            None if seen["next"] and seen.get("state", "finished") == "finished" else f"the next event is lost: {seen}"
        )

    return allowed


EVENTS: dict[str, Protocol] = {
    "events": Protocol(_emit, _events, _synced_are_there(0), made_in),
    "events after a torn line": Protocol(
        _emit_to_torn,
        _events,
        _synced_are_there(1),
        _torn_events,
        {"no sync runs/gpt": "the file was there before"},
        recover=_taken_up,
    ),
}
