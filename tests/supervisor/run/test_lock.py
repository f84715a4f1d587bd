"""The lock of a run: who may have it when somebody else has it for a moment, or for good."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.errors import HeldByAnother
from supervisor.process.place import here
from supervisor.run.folder import lock
from supervisor.run.folder.lock import RunLock, claimed, holder, is_held
from tests.support.runs_on_disk import Writer
from trainer.rundir.layout import RunDir


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run that had a supervisor, which is dead."""
    monkeypatch.setattr(lock, "_TIME_LIMIT", 0.01)
    run = Writer(tmp_path / "run").run
    dead = subprocess.Popen(["true"])
    dead.wait()
    run.holder.write_text(json.dumps({"pid": dead.pid, **here()}))
    run.lock.touch()
    return run


def held(run: RunDir, kind: int, looks: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """Somebody has the lock until he who wants it has looked so often whether a supervisor has it. Returns what ends it
    before that."""
    other = run.lock.open()
    fcntl.flock(other, kind)
    left = iter(range(looks))

    def looked(run: RunDir) -> bool:
        if next(left, None) is None:
            other.close()
        return is_held(run)

    monkeypatch.setattr(lock, "is_held", looked)
    return other.close


@pytest.mark.parametrize("kind", [fcntl.LOCK_SH, fcntl.LOCK_EX], ids=["a query", "gc"])
def test_a_look_that_takes_long_is_waited_for(run: RunDir, kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that looks at the run, on a machine that gives it no time, is no supervisor."""
    held(run, kind, 5, monkeypatch)
    with RunLock(run):
        assert is_held(run) and holder(run)["pid"] == os.getpid()
    assert not is_held(run)


def test_a_command_waits_for_a_look_and_for_nothing_else(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """gc and the like need the lock, too, and take nothing from one who has it."""
    held(run, fcntl.LOCK_SH, 5, monkeypatch)
    with claimed(run) as ours:
        assert ours and is_held(run)
    end = held(run, fcntl.LOCK_EX, 1000, monkeypatch)
    with claimed(run) as ours:
        assert not ours
    end()


def test_a_supervisor_is_not_waited_for(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its note names a process that lives. That of another machine may live."""
    end = held(run, fcntl.LOCK_EX, 1000, monkeypatch)
    for note in ({"pid": os.getpid(), **here()}, {"pid": 1, **here(), "host": "another"}):
        run.holder.write_text(json.dumps(note))
        with pytest.raises(HeldByAnother, match=f"pid {note['pid']} "), RunLock(run):
            pass
    end()
    with RunLock(run):
        assert holder(run)["pid"] == os.getpid()


def test_a_parent_that_takes_long_to_give_it_is_waited_for(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-Z the launch has the run until the supervisor in the background is there, and gives it away then."""
    held(run, fcntl.LOCK_EX, 5, monkeypatch)
    run.holder.write_text(json.dumps({"pid": os.getpid(), **here()}))
    monkeypatch.setattr(os, "getppid", os.getpid)
    with RunLock(run, given=True):
        assert is_held(run)
