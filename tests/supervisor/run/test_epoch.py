"""Leaders of a run over several nodes, one after the other, of which an earlier one is still there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from supervisor.errors import HeldByAnother
from supervisor.reading.events_file import read_events
from supervisor.run import events
from supervisor.run.events import EventLog
from supervisor.run.folder.anchor import Anchor, Moved
from supervisor.run.folder.epoch import Epoch
from trainer.rundir.layout import RunDir


def test_one_number_each(tmp_path: Path) -> None:
    """Also if a name was made meanwhile, or is of nobody's."""
    run = RunDir(tmp_path)
    first = Epoch(run)
    (run.leaders / "0002").touch()
    (run.leaders / "0003.tmp").touch()
    second = Epoch(run)

    assert (first.number, second.number) == (1, 3)
    assert first.is_over() and not second.is_over()
    assert f"pid {os.getpid()} on " in first.successor()
    assert second.events == tmp_path / "events.0003.jsonl"


def test_a_disk_that_cannot_be_read_ends_no_leader(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    epoch = Epoch(run)
    run.leaders.rename(tmp_path / "elsewhere")
    assert not epoch.is_over()


def test_what_an_earlier_leader_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes aside, what waits for a full disk, too, and nobody is told."""
    run = RunDir(tmp_path)
    old = EventLog(run, "gpt", epoch=Epoch(run))
    heard: list[bytes] = []
    old.heard = heard.append
    old.emit("run_started")
    with monkeypatch.context() as patch:
        patch.setattr(events, "append_line", lambda fd, line: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        old.emit("verdict", cause="killed")
    told = len(heard)
    new = EventLog(run, "gpt", epoch=Epoch(run))
    new.emit("run_started")
    before = run.events.read_bytes()
    old.sync()
    old.emit("verdict", cause="hang")
    old.close()

    assert run.events.read_bytes() == before
    assert [event["msg"] for event in read_events(run.events)[0]] == ["run_started", "run_started"]
    aside = read_events(run.events_of(1))[0]
    assert [event.get("cause") for event in aside if event["msg"] == "verdict"] == ["killed", "hang"]
    assert len(heard) == told
    new.emit("run_ended")
    new.close()
    assert [event["msg"] for event in read_events(run.events)[0]] == ["run_started", "run_started", "run_ended"]


def test_an_anchor_does_not_hold_an_earlier_leader(tmp_path: Path) -> None:
    """The later one goes on, as long as the folder is in its place."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    first = Anchor(run.path, Epoch(run))
    assert first.holds()
    second = Anchor(run.path, Epoch(run))
    why = first.lost()

    assert not first.holds() and second.holds()
    assert isinstance(why, HeldByAnother) and "events.0001.jsonl" in str(why)
    run.path.rename(tmp_path / "moved")
    assert not second.holds() and isinstance(second.lost(), Moved)
    first.close()
    second.close()
