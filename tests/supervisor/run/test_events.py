"""The writer of events.jsonl: a disk that is full costs no event and stops nobody."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from supervisor.reading.events_file import read_events
from supervisor.run import events
from trainer.rundir.files.durable import Disk
from trainer.rundir.layout import RunDir


def test_full_disk_delays_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full emit() goes on; once there is room, every event is in the file, in order, without a
    gap."""
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
    assert [e["msg"] for e in found] == ["run_started", "verdict", "warning", "group_gone", "run_ended"]
    assert [e["seq"] for e in found] == [1, 2, 3, 4, 5] and skipped == 0


def test_before_and_after_structlog(tmp_path: Path) -> None:
    """The lines before the first step, which structlog does not write, look like those after it."""
    run = RunDir(tmp_path)
    log = events.EventLog(run, "gpt")
    said = {"rank": 1, "level_of": "disk", "msg_": "", "run_dir": "x"}
    log.emit("warning", "warning", text="the same", **said)
    log.emit("first_step")
    log.emit("warning", "warning", text="the same", **said)
    log.close()

    first, _, last = run.events.read_text().splitlines()
    own = {"ts": "", "mono": 0, "seq": 0}
    assert list(json.loads(first)) == list(json.loads(last))
    assert {**json.loads(first), **own} == {**json.loads(last), **own}


def test_text_that_is_none(tmp_path: Path) -> None:
    """Half a character, as in an exception about a file whose name is no text, is an event all the same."""
    run = RunDir(tmp_path)
    log = events.EventLog(run, "gpt")
    log.emit("verdict", "error", reason="no file \udcff", step=10**30)
    log.emit("run_ended")
    log.close()

    assert [e["msg"] for e in read_events(run.events)[0]] == ["verdict", "run_ended"]


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the middle of a line leaves no fragment, which would swallow the line that is written
    again."""
    run = RunDir(tmp_path)
    log = events.EventLog(run, "gpt")
    log.emit("run_started")
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
        log.emit("verdict", "error", step=3)
    log.close()

    found, skipped = read_events(run.events)
    assert [e["msg"] for e in found] == ["run_started", "verdict", "warning"] and skipped == 0


class SlowDisk(Disk):
    """Its syncs take until they are let go."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.synced = 0

    def fsync(self, fd: int, path: Path) -> None:
        self.begun.set()
        assert self.go_on.wait(60)
        self.synced += 1
        super().fsync(fd, path)


def test_a_slow_disk_holds_up_nobody(tmp_path: Path) -> None:
    """While a sync takes its time, events are written and sync() returns; close() waits until all of them are
    synced."""
    run, disk = RunDir(tmp_path), SlowDisk()
    log = events.EventLog(run, "gpt", disk=disk)
    log.emit("run_started")
    log.sync()
    assert disk.begun.wait(60)
    for _ in range(3):
        log.emit("verdict", "error", step=3)
        log.sync()
    assert disk.synced == 0 and len(read_events(run.events)[0]) == 4

    closing = threading.Thread(target=log.close)
    closing.start()
    time.sleep(0.1)
    assert closing.is_alive()
    disk.go_on.set()
    closing.join(60)
    assert not closing.is_alive() and disk.synced == 2


def test_a_sync_that_has_not_begun_is_made_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that syncs may get no CPU between the last event and the end."""

    class Late(threading.Semaphore):
        def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
            got = super().acquire(blocking, timeout)
            time.sleep(0.1)
            return got

    monkeypatch.setattr(threading, "Semaphore", Late)
    disk = SlowDisk()
    disk.go_on.set()
    log = events.EventLog(RunDir(tmp_path), "gpt", disk=disk)
    log.emit("run_ended")
    log.sync()
    log.close()
    assert disk.synced == 1


def test_a_sync_that_fails_is_told_once(tmp_path: Path) -> None:
    """A disk that cannot be synced is in the events, once, and the events go on."""

    class Broken(Disk):
        def fsync(self, fd: int, path: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

    log = events.EventLog(RunDir(tmp_path), "gpt", disk=Broken())
    log.emit("run_started")
    end = time.monotonic() + 60
    while len(read_events(tmp_path / "events.jsonl")[0]) < 2 and time.monotonic() < end:
        log.sync()
    for _ in range(3):
        log.sync()
        time.sleep(0.02)
    log.close()
    found = read_events(tmp_path / "events.jsonl")[0]
    assert [e["msg"] for e in found] == ["run_started", "warning"] and "Input/output" in found[1]["text"]


def test_secrets_of_the_environment_are_not_written(tmp_path: Path) -> None:
    """The value of a secret variable is not in the file, in whatever field it was and however JSON writes it."""
    secret = 'q"\\ü7\t9x'
    log = events.EventLog(RunDir(tmp_path), "gpt", {"HF_TOKEN": secret, "PLAIN": "visible"})
    log.emit("warning", "warning", text=f"no access with {secret}", more=[{"deep": secret}], plain="visible")
    log.close()
    [event] = read_events(tmp_path / "events.jsonl")[0]
    assert event["text"] == "no access with ${HF_TOKEN}" and event["more"] == [{"deep": "${HF_TOKEN}"}]
    assert event["plain"] == "visible"
