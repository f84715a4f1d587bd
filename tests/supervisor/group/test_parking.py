"""Whether a group that waits in restore() may become an attempt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from supervisor.core.model import Cause
from supervisor.core.standby.parking import TRIES
from supervisor.group.group import WorkerGroup
from supervisor.group.parking import Parking
from supervisor.group.seat import Seat
from supervisor.group.standby import Standby
from supervisor.process import memory
from supervisor.run.spec import Spec
from trainer.rank import parking as rank_parking
from trainer.rundir.files.codec import encode
from trainer.rundir.layout import RunDir
from trainer.rundir.records.gate import Release
from trainer.rundir.records.parking import Parked, Reached

BODY = Release(1, {}, ["train.py", "--x"])


@pytest.fixture
def parking(tmp_path: Path) -> Parking:
    run = RunDir(tmp_path / "run")
    run.attempt(0).path.mkdir(parents=True)
    run.attempt(0).reached(0).write_bytes(encode(Reached(park=True, steps=0)))
    return Parking(Spec("run", "mark", ("train.py", "--x"), False, 1, str(tmp_path)), run)


def test_who_has_come_has_a_pid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group in which all have come tells all their pids: nobody sees a rank whose pid is not written yet."""
    group = WorkerGroup.ordered(tmp_path / "group", Seat((1,)), "fork")
    group.born(os.getpid())
    rename, seen = Path.rename, []

    def slowly(path: Path, target: Path) -> Path:
        seen.append((path.read_text(), group.parked, group.rank_pids()))
        return rename(path, target)

    try:
        monkeypatch.setattr(Path, "rename", slowly)
        group.gate.come(0)
        assert seen == [(str(os.getpid()), False, [])]
        assert group.parked and group.rank_pids() == [os.getpid()]
    finally:
        group.dissolve()


def test_pids_are_in_the_order_of_the_ranks(tmp_path: Path) -> None:
    """Whoever comes first."""
    group = WorkerGroup.ordered(tmp_path / "group", Seat((2,)), "fork")
    try:
        for rank in (1, 0):
            group.gate.ready(rank).write_text(str(100 + rank))
            group.rank_pids()
        assert group.rank_pids() == [100, 101]
    finally:
        group.dissolve()


def test_each_gpu_that_a_rank_holds_is_told(parking: Parking, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is its current one; one that it holds nothing of is not even asked. All of them need room."""
    free = {1: 100 << 30, 3: 1 << 30}
    for name, value in {
        "is_initialized": lambda: True,
        "device_count": lambda: 4,
        "current_device": lambda: 0,
        "memory_reserved": lambda number: (8 << 30) * (number in free),
        "max_memory_reserved": lambda number=0: 10 << 30,
        "mem_get_info": lambda number=0: (free[number], 100 << 30),
        "get_device_properties": lambda number: SimpleNamespace(uuid=f"GPU-{number}"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(rank_parking, "supervised", lambda: SimpleNamespace(attempt=parking._run.attempt(0)))
    monkeypatch.setattr(rank_parking, "_rank", 0)
    monkeypatch.setattr(rank_parking, "_reached", None)

    rank_parking.reached(park=True)

    gpus = [(gpu.device, gpu.reserved, gpu.free) for gpu in parking._facts(0).gpus]
    assert gpus == [("GPU-1", 10 << 30, 100 << 30), ("GPU-3", 10 << 30, 1 << 30)]
    assert parking.expected(0) is None and "GPU memory" in parking.why


def test_a_rank_that_has_ended_while_it_waited(tmp_path: Path) -> None:
    """Its group is not released, even if its launcher has not seen it yet."""
    group, ended = WorkerGroup.ordered(tmp_path / "group", Seat((2,)), "fork"), subprocess.Popen(["true"])
    ended.wait()
    try:
        group.gate.ready(0).write_text(str(os.getpid()))
        assert group.dead() == ""
        group.gate.ready(1).write_text(str(ended.pid))
        assert group.dead() == "rank 1 has ended"
    finally:
        group.dissolve()


@pytest.mark.parametrize(("cause", "what"), [(Cause.HOST_OOM, "ran out of memory"), (Cause.KILLED, "")])
def test_an_attempt_that_a_standby_took_the_memory_of(
    parking: Parking, tmp_path: Path, cause: Cause, what: str
) -> None:
    """The next standby waits at its first line; after any other failure it waits in restore() as before."""
    standby = Standby(parking._spec, parking._run, {}, SimpleNamespace(emit=lambda *_, **__: None))  # type: ignore
    standby._parking, expected = parking, parking.expected(0)
    standby._group = group = WorkerGroup.ordered(tmp_path / "group", Seat((1,)), "fork", expected)
    try:
        standby.failed(cause)
        assert (parking.expected(0) is None) is bool(what) and what in parking.why
    finally:
        group.dissolve()


def test_the_memory_that_is_left_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """If that is less than the machine's."""
    for headroom, least in ((1 << 20, 1 << 20), (None, None), (1 << 60, None)):
        monkeypatch.setattr(memory, "own_group", lambda headroom=headroom: SimpleNamespace(headroom=lambda: headroom))
        found = memory.available()
        assert found is not None and (found == least if least else 1 << 20 < found < 1 << 60)


def test_refused(parking: Parking, tmp_path: Path) -> None:
    """It must have the arguments of the attempt, and every file of its program as it was: size, time and inode. After
    other arguments for the second time, the next one waits at its first line."""
    source = tmp_path / "part.py"
    source.write_text("VERSION = 1")
    expected = parking.expected(0)
    assert expected is not None
    group = WorkerGroup.ordered(tmp_path / "group", Seat((1,)), "fork", expected)

    def refused(**changes: Any) -> str:
        return parking.refused(group, lambda: msgspec.structs.replace(BODY, **changes))

    def read() -> None:
        known = source.stat()
        files = [(str(source), known.st_size, known.st_mtime_ns, known.st_ino)]
        group.gate.put(group.gate.parked(0), Parked(os.getpid(), files))

    try:
        # Nothing of it is parked yet: what the attempt has loaded counts.
        program = parking._run.attempt(0).program
        program.write_bytes(encode([(str(source), 0, 0)]))
        os.utime(group.gate.ahead, ns=(2**62, 2**62))
        assert refused() == ""
        os.utime(source, ns=(0, 0))
        os.utime(group.gate.ahead, ns=(1, 1))
        assert "part.py has changed" in refused()  # it was moved there: it has kept the time of its content
        read()
        assert refused() == ""
        source.write_text("VERSION = 2")
        assert "part.py has changed" in refused()
        read()
        (tmp_path / "new").write_text("VERSION = 2")
        (tmp_path / "new").rename(source)
        assert "part.py has changed" in refused()
        source.unlink()
        assert "part.py has changed" in refused()
        for _ in range(TRIES):
            assert "made for attempt 1" in refused(attempt=2)
        for _ in range(TRIES):
            assert parking.expected(0) is not None
            assert "other arguments" in refused(edits=[(2, 0, ["--resume"])])
        assert parking.expected(0) is None and "other arguments" in parking.why
    finally:
        group.dissolve()
