"""The writer of events.jsonl: a disk that is full costs no event and stops nobody."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from supervisor import events
from supervisor.reading.events_file import read_events
from trainer.rundir.layout import RunDir


def test_full_disk_delays_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full emit() goes on; once there is room, every event is in the file, in order, without a gap."""
    run = RunDir(tmp_path)
    log = events.EventLog(run, "gpt")
    log.emit("run_started")
    append = events.append_line

    def full(fd: int, line: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events, "append_line", full)
    log.emit("verdict", "error", step=3)
    log.emit("group_gone")
    log.sync()
    assert [e["msg"] for e in read_events(run.events)[0]] == ["run_started"]
    monkeypatch.setattr(events, "append_line", append)
    log.sync()
    log.emit("run_ended")
    log.close()

    found, skipped = read_events(run.events)
    assert [e["msg"] for e in found] == ["run_started", "verdict", "group_gone", "run_ended"]
    assert [e["seq"] for e in found] == [1, 2, 3, 4] and skipped == 0


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the middle of a line leaves no fragment, which would swallow the line that is written again."""
    run = RunDir(tmp_path)
    log = events.EventLog(run, "gpt")
    log.emit("run_started")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
        log.emit("verdict", "error", step=3)
    log.close()

    found, skipped = read_events(run.events)
    assert [e["msg"] for e in found] == ["run_started", "verdict"] and skipped == 0
