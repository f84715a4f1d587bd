"""A node's own folder: one supervisor has it, and what a dead one has left there is found and emptied."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from supervisor.errors import HeldByAnother, Refusal
from supervisor.nodes.own import Own, abandoned

TOKEN = b"0123456789abcdef"


def test_one_supervisor_has_it(tmp_path: Path) -> None:
    """Another one at the same address of the same run is refused, one at another address is not; close() removes it."""
    own = Own(str(tmp_path), TOKEN, "10.0.0.1")
    other = Own(str(tmp_path), TOKEN, "10.0.0.2")
    (own.path / "lease").write_text("x")
    with pytest.raises(HeldByAnother, match="another supervisor of this run is node"):
        Own(str(tmp_path), TOKEN, "10.0.0.1")

    assert (own.path / "lease").read_text() == "x" and own.path.stat().st_mode & 0o777 == 0o700
    assert list(abandoned(tmp_path)) == []
    own.close()
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_of_a_dead_supervisor(tmp_path: Path) -> None:
    """It is abandoned, and the next supervisor finds it empty."""
    code = (
        "import sys, time\nfrom supervisor.nodes.own import Own\n"
        f"own = Own(sys.argv[1], {TOKEN!r}, 'a')\n(own.path / 'standby').mkdir()\n(own.path / 'lease').touch()\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        held = list(abandoned(tmp_path))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    left = list(abandoned(tmp_path))
    own = Own(str(tmp_path), TOKEN, "a")

    assert (held, left) == ([], [own.path])
    assert list(own.path.iterdir()) == []
    own.close()


def test_gc_looks_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds a folder of which it does not know yet whose it is, and may remove it: a supervisor that begins just
    then gets a folder all the same."""
    monkeypatch.setattr("supervisor.nodes.own._TIME_LIMIT", 60.0)
    own = Own(str(tmp_path), TOKEN, "a")
    own.close()
    for removes in (False, True):
        own.path.mkdir(mode=0o700)
        looking = abandoned(tmp_path)
        path = next(looking)
        with ThreadPoolExecutor(1) as pool:
            begun = pool.submit(Own, str(tmp_path), TOKEN, "a")
            time.sleep(0.1)
            assert not begun.done()
            if removes:
                shutil.rmtree(path)
            assert next(looking, None) is None
            own = begun.result(60)
        assert list(abandoned(tmp_path)) == [] and own.path.is_dir()
        own.close()


def test_somebody_elses(tmp_path: Path) -> None:
    """A folder that others can enter is no folder of ours."""
    own = Own(str(tmp_path), TOKEN, "a")
    own.close()
    own.path.mkdir(mode=0o755)
    own.path.chmod(0o755)
    with pytest.raises(Refusal, match="--local-dir"):
        Own(str(tmp_path), TOKEN, "a")

    assert list(abandoned(tmp_path)) == []
