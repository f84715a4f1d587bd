"""A group that cannot become its attempt, since the disk is full, is ended: no process of it waits for ever, and no
descriptor of it is left."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.attempt import attempt as attempts
from supervisor.attempt.attempt import Attempt
from supervisor.group import maker
from supervisor.group.group import WorkerGroup
from supervisor.group.seat import Seat
from supervisor.group.standby import Standby
from supervisor.process.proctree import marked
from supervisor.process.reaper import Reaper
from supervisor.run.events import EventLog
from supervisor.run.spec import Spec
from tests.support.supervised import ROOT
from tests.support.waiting import until
from trainer.rundir.layout import RunDir
from trainer.rundir.records.gate import Gate, Release
from trainer.rundir.variables import MARK

WAITS = """
import os, sys, time
from pathlib import Path
from trainer.rundir.records.gate import Gate
gate = Gate(Path(sys.argv[1]))
if os.fork() == 0:
    gate.wait(0)
time.sleep(600)
"""
"""A launcher and its rank. They do not end by themselves when the gate is gone."""
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
MARKED = f"not-launched-{os.getpid()}"


def full(*_: Any, **__: Any) -> Any:
    raise FULL


def fds() -> set[tuple[str, str]]:
    """The open descriptors of this process, and what each is of."""
    return {(each.name, str(each.readlink())) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The pids of the launchers that are started."""
    pids = list[int]()

    def start(spec: Spec, gate: Gate, env: Any, seat: Seat) -> int:
        command = [sys.executable, "-c", WAITS, str(gate.path)]
        env = {**os.environ, MARK: f"{spec.mark}.group", "PYTHONPATH": str(ROOT)}
        child = subprocess.Popen(command, env=env, start_new_session=True)
        child.returncode = 0
        pids.append(child.pid)
        until(gate.ready(0).exists)
        return child.pid

    monkeypatch.setattr(maker, "start_cold", start)
    yield pids
    monkeypatch.undo()
    for process in marked(MARKED):
        process.kill()
    for pid in pids:
        os.waitpid(pid, 0)


def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda at, *a, **k: (full if at.name == "0001" else made)(at, *a, **k))


def no_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "create_beats", full)


def no_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gate, "put", full)


@pytest.mark.parametrize("fails", [no_folder, no_beats, no_release])
def test_a_group_that_cannot_be_released_is_ended(
    fails: Callable[[pytest.MonkeyPatch], None],
    launched: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, spec = RunDir(tmp_path), Spec("run", MARKED, ("x.py",), False, 1, str(tmp_path), standby=False)
    log = EventLog(run, "run")
    standby = Standby(spec, run, os.environ, log)
    # The name of the attempt's folder is that of no group's.
    standby._maker._count = 7
    before = fds()
    attempt = Attempt(run, spec, 1, lambda: Release(1, {}, ["x.py"], 1), Reaper(), 0.0)

    with monkeypatch.context() as broken:
        fails(broken)
        assert not attempt.raise_up(standby, 0.0)

    assert (attempt.error, attempt.watch, len(launched)) == (str(FULL), None, 1)
    until(lambda: marked(MARKED) == [])
    assert fds() == before
    assert list(run.standby.iterdir()) == []
    log.close()


def test_an_attempt_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more processes are allowed (ulimit -u): that says nothing about the script."""
    run, spec = RunDir(tmp_path), Spec("run", MARKED, ("x.py",), False, 1, str(tmp_path), standby=False)
    log = EventLog(run, "run")
    attempt = Attempt(run, spec, 1, lambda: Release(1, {}, ["x.py"], 1), Reaper(), 0.0)

    def crowded(*_: Any) -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(maker, "start_cold", crowded)
    with pytest.raises(BlockingIOError):
        attempt.raise_up(Standby(spec, run, os.environ, log), 0.0)
    assert (attempt.error, attempt.watch) == ("", None)

    # The same if a fork server says so.
    group = WorkerGroup.ordered(run.standby / "0001", Seat((1,)), "fork")
    group.stillborn = group.crowded = True
    standby = SimpleNamespace(take=lambda *_, **__: group)
    with pytest.raises(BlockingIOError):
        attempt.raise_up(standby, 0.0)  # type: ignore[arg-type]
    assert (attempt.error, attempt.watch, list(run.standby.iterdir())) == ("", None, [])
    log.close()


def test_a_group_that_cannot_be_started_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither if its files cannot be made, nor if its launcher cannot."""
    run, spec = RunDir(tmp_path), Spec("run", MARKED, ("x.py",), False, 1, str(tmp_path), standby=False)
    log = EventLog(run, "run")
    standby = Standby(spec, run, os.environ, log)
    before = fds()
    monkeypatch.setattr(maker, "start_cold", full)
    with pytest.raises(OSError, match=str(FULL.strerror)):
        standby.take(0.0, lambda: Release(1, {}, []))
    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(OSError, match=str(FULL.strerror)):
        WorkerGroup.ordered(run.standby / "0009", Seat((1,)), "exec")
    assert fds() == before
    assert list(run.standby.iterdir()) == []
    log.close()
