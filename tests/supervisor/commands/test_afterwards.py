"""What `status`, `report`, `ls` and `ckpt` say about a run that is over, or waits: by runs laid out by hand."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor.commands import cli
from supervisor.run import origin
from supervisor.run import spec as specs
from supervisor.run.origin import git
from supervisor.run.runs import all_runs
from supervisor.run.spec import Spec
from supervisor.run.status import status
from tests.support.runs_on_disk import Writer


def made(name: str, created: str, **fields: Any) -> Writer:
    """A run in ./runs as `launch` makes it."""
    w = Writer(Path("runs", name), name)
    command = ("train.py", "--data", "a\x1b[2Jb")
    specs.save(
        w.run, Spec(name, f"{len(name):x}{0:015x}", command, False, 2, str(Path.cwd()), created=created, **fields)
    )
    return w


def barren(name: str, created: str = "2026-11-24T02:00:00.000+00:00") -> Writer:
    """Three attempts that saved nothing. The last one ended the run."""
    w = made(name, created)
    w.event("run_started", 0, attempt=-1)
    for n in range(3):
        w.event("attempt_started", 10 * n + 1, n, wanted_mono=10 * n + 0.5)
        w.event("first_step", 10 * n + 3, n, step=1, from_step=0, at_mono=10 * n + 3.0)
        w.event(
            "verdict",
            10 * n + 6,
            n,
            cause="killed",
            rank=1,
            signal=9,
            step=40,
            failed_mono=10 * n + 6,
            reason="rank 1 was killed",
        )
        w.event("group_gone", 10 * n + 7, n, step=40, barren=n + 1)
        if n < 2:
            w.event("relaunch_scheduled", 10 * n + 7, n, delay_s=3.0, counted=True, barren=n + 1, best_step=-1)
    return w


def over(w: Writer, at: float = 27, **fields: Any) -> Writer:
    end = {
        "exit_code": 105,
        "state": "failed",
        "reason": "3 attempts in a row left no new checkpoint: rank 1 was killed",
    }
    w.event("run_ended", at, 2, **{**end, **fields})
    return w


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC")


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert cli.run(list(words)) == code
    return capsys.readouterr().out


def test_a_run_that_saved_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Its budget says what its end says, and its owner is told what a save would change."""
    over(barren("lazy-1"))
    shown, body = said(capsys, "status"), json.loads(said(capsys, "status", "--json"))

    assert (body["budget"]["no_progress"], body["budget"]["used"], body["saves_nothing"]) == (3, 2, True)
    assert (body["wall_s"], body["stopped_s"], body["ended"]) == (27.0, 0.0, "2026-11-24T02:00:27.000Z")
    assert "3 of 3 attempts in a row left no new checkpoint" in shown and "docs/checkpoints.md" in shown
    assert "None" not in shown and "\x1b" not in shown and "_" not in shown.partition("RANK")[2]

    report = said(capsys, "report")
    assert [f"attempt {n}  2026-11-24 02:00:{10 * n:02d}, 6 s, steps 0→40" in report for n in range(3)] == [True] * 3
    assert "docs/checkpoints.md" in report and "None" not in report
    # What an earlier leader has told is no part of it.
    all_runs()[0].run.events_of(1).write_bytes(all_runs()[0].run.events.read_bytes().replace(b"killed", b"hang"))
    aside = said(capsys, "report").splitlines()
    assert [line for line in aside if "events.0001.jsonl: what a leader saw" not in line] == report.splitlines()
    assert len(aside) == len(report.splitlines()) + 1
    # A script that saves by itself is not told to save.
    writer = Writer.__new__(Writer)
    writer.run, writer.name, writer.seq = all_runs()[0].run, "lazy-1", 99
    writer.event("script_saved", 28, 2, path="/a.pt", step=40)
    assert not status(all_runs()[0])["saves_nothing"]


def test_a_page_and_a_document_of_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Who asks for both gets both."""
    over(barren("gpt-0001"))
    both = said(capsys, "report", "gpt-0001", "--html", "page.html", "--json")
    assert both == said(capsys, "report", "gpt-0001", "--json") and json.loads(both)["state"] == "failed"
    assert Path("page.html").read_text("utf-8").startswith("<!")


def test_runs_are_chosen_and_named_as_they_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    """The newest first; a copy by the name of its folder, since its id is the original's."""
    old = over(barren("old-1", "2026-11-20T02:00:00.000+00:00"), state="stopped")
    barren("new-1", "2026-11-25T02:00:00.000+00:00")
    shutil.copytree(old.run.path, "runs/copied")
    names = [row["name"] for row in json.loads(said(capsys, "ls", "--json"))["runs"]]
    assert names[0] == "new-1" and sorted(names[1:]) == ["copied", "old-1"]

    chosen = {
        ("-n", "1"): {"new-1"},
        ("--state", "stopped"): {"old-1", "copied"},
        ("--state", "lost"): {"new-1"},
        ("--since", "2026-11-24T00:00"): {"new-1"},
        ("--since", "2026-11-26T00:00"): set(),
    }
    for words, expected in chosen.items():
        assert {row["name"] for row in json.loads(said(capsys, "ls", "--json", *words))["runs"]} == expected, words
    assert cli.run(["ls", "--since", "yesterday"]) == 2


def test_a_line_of_ls_fits_80_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    over(barren("train-nanogpt-a3f4"))
    w = over(barren("evaluate-7b-0c1d"), state="preempted")
    w.event("run_started", 9e5, attempt=2)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: os.terminal_size((80, 24)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = [line for line in said(capsys, "ls").splitlines() if "-" in line]

    assert len(shown) == 2 and all("killed" in line for line in shown)
    assert max(len(line) for line in shown) <= 80


def test_no_checkpoints_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    over(barren("lazy-1"))
    for words in ("ls", "verify"):
        assert cli.run(["ckpt", words]) == 0
        seen = capsys.readouterr()
        assert seen.out == "" and "no checkpoints in" in seen.err
    assert json.loads(said(capsys, "ckpt", "ls", "--json"))["checkpoints"] == []


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_run_json_knows_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whether it is the whole truth. A repository that git refuses, or none, is not known."""
    # A launch does not wait for git as long as a busy machine may take.
    monkeypatch.setattr(origin, "LIMIT", 60.0)
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "GIT_DIR": "/nowhere"}
    script, run = tmp_path / "my train.py", ["git", "-c", "user.name=a", "-c", "user.email=b"]
    script.write_text("1")
    assert git(script, tmp_path, home) is None
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x", "--no-verify"]):
        subprocess.run([*run, *words], cwd=tmp_path, env={**home, "GIT_DIR": str(tmp_path / ".git")}, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert git(script, tmp_path, home) == {"commit": commit.stdout.strip(), "dirty": False}
    # A program that the repository names is not run.
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    subprocess.run([*run, "config", "core.fsmonitor", str(hook)], cwd=tmp_path, check=True)
    script.write_text("2")
    assert (found := git(script, tmp_path, home)) and found["dirty"] and not (tmp_path / "ran").exists()
    script.write_text("1")
    (tmp_path / "new.py").write_text("1")
    assert (found := git(tmp_path / "new.py", tmp_path, home)) and found["dirty"]
