"""Two programs in one folder, without a supervisor: the second one is refused."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.support.jobs import ROOT, environment
from trainer.checkpoint import Checkpointer, StateError, load
from trainer.checkpoint.disk import hold
from trainer.rundir.layout import committed_steps

PROGRAM = """
import sys
from torch import nn
from trainer.checkpoint import Checkpointer

ckpt = Checkpointer(model=nn.Linear(2, 2), directory=sys.argv[1], every=1)
ckpt.restore()
ckpt.step(1)
print("trains", flush=True)
sys.stdin.read()
"""


def _checkpointer(folder: Path) -> Checkpointer:
    return Checkpointer(model=nn.Linear(2, 2), directory=folder, every=1)


def test_a_second_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the first one lives. What it writes is not swept away, and may be read. A kill frees the folder."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    pipe: Any = subprocess.PIPE
    other = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment(), cwd=ROOT, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "trains\n"
        writes = tmp_path / ".step-00000002.tmp-0123456789ab"
        writes.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(hold, "_LONGEST_END_S", 0.0)
            with pytest.raises(StateError, match=r"another program trains in .*directory="):
                _checkpointer(tmp_path).restore()
        assert writes.exists()
        assert load(tmp_path, model=nn.Linear(2, 2)).step == 1
        other.send_signal(signal.SIGKILL)
        ckpt = _checkpointer(tmp_path)
        assert ckpt.restore() == 1
        ckpt.step(2)
        ckpt.close()
    finally:
        other.kill()
        other.communicate()

    assert committed_steps(tmp_path) == [1, 2]
    assert not writes.exists()


def _is_free(folder: Path) -> bool:
    """Whether another process could hold it."""
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", code, str(folder)], stderr=subprocess.DEVNULL).returncode == 0


def test_it_is_held_until_close(tmp_path: Path) -> None:
    """This process may go on with another Checkpointer, and the folder is held until the last one is closed; a worker
    that it has forked does not hold it."""
    first, second = _checkpointer(tmp_path / "c"), _checkpointer(tmp_path / "c")
    assert [first.restore(), second.restore()] == [0, 0]
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=theirs.recv, daemon=True)
    child.start()
    first.close()
    assert not _is_free(tmp_path / "c")
    second.close()
    assert child.is_alive()
    assert _is_free(tmp_path / "c")
    ours.send("end")
    child.join(60)
    assert child.exitcode == 0


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training goes on there as it did."""

    def is_ours(fd: int) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(hold, "is_ours", is_ours)
    ckpt = _checkpointer(tmp_path)
    assert ckpt.restore() == 0
    ckpt.step(1)
    monkeypatch.undo()
    ckpt.close()

    assert committed_steps(tmp_path) == [1]
