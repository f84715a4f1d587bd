"""A run of a newer supervise: words that this one does not know are shown as they are, and decide nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supervisor.commands import cli
from supervisor.core.words import EventName
from supervisor.reading.events_file import read_events
from supervisor.run.events import EventLog
from supervisor.run.previous import previous_of, retold
from supervisor.run.status import story_of
from tests.support.runs_on_disk import recovered_run


def test_words_of_a_newer_version(tmp_path: Path) -> None:
    """Its event is passed over, its cause is no verdict to go on with, and in whatever state it ended, it is over."""
    w = recovered_run(tmp_path / "run")
    before = previous_of(w.run).story
    assert (before.state, before.over) == ("finished", True)
    w.event("run_started", 22, attempt=-1)
    w.event("attempt_started", 23, attempt=2)
    w.event("quota_changed", 24, attempt=2, cause=["x"], step=99, state="archived")
    verdict = w.event("verdict", 25, attempt=2, cause="cosmic_ray", rank=0, step=50, reason="a bit flipped")
    assert retold(verdict) is None
    story = story_of(w.run)
    assert (story.failures()[-1].cause, story.state, story.over) == ("cosmic_ray", "lost", False)
    w.event("run_ended", 26, attempt=2, exit_code=120, state="archived", reason="as asked")
    previous = previous_of(w.run)
    assert (previous.story.state, previous.story.exit_code, previous.story.over) == ("archived", 120, True)
    assert (previous.unfinished, previous.goes_on, previous.story.high_step) == (False, False, 50)


def test_what_we_write_is_of_our_words(tmp_path: Path) -> None:
    """An event that is none of ours is not written, whoever asks for it."""
    w = recovered_run(tmp_path / "run")
    log = EventLog(w.run, "gpt")
    with pytest.raises(ValueError, match="quota_changed"):
        log.emit("quota_changed")
    log.close()
    assert all(EventName(event["msg"]) for event in read_events(w.run.events)[0])


def test_it_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`status --exit-code` gives its code, and its words."""
    w = recovered_run(tmp_path / "run")
    w.event("run_started", 22, attempt=-1)
    w.event("run_ended", 26, attempt=2, exit_code=120, state="archived", reason="as asked")
    body = {"command": ["x"], "module": False, "nproc": 1, "cwd": "/", "actions": {"cosmic_ray": "pray"}, "speed": [1]}
    w.run.run_json.write_text(json.dumps({**json.loads(w.run.run_json.read_bytes()), **body}))
    assert cli.run(["status", str(w.run.path), "--exit-code"]) == 120
    assert "ARCHIVED" in capfd.readouterr().out
