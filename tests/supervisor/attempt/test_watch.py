"""Which ranks are taken for gone: none that has just shown up and lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from supervisor.attempt.watch import Watch
from supervisor.group.group import WorkerGroup
from supervisor.group.seat import Seat
from supervisor.process import proctree
from supervisor.process.reaper import Reaper
from tests.support.waiting import until
from trainer.rundir.layout import RunDir
from trainer.rundir.machine.proc import is_running
from trainer.rundir.records.beats import BeatWriter, create_beats


def gone(watch: Watch) -> list[int]:
    return [each.rank for each in watch.exits if each.rank is not None]


def test_a_number_of_a_descriptor_that_is_used_again(tmp_path: Path) -> None:
    """What was readable before the rank's pidfd was opened says nothing about the rank, whatever its number is."""
    attempt = RunDir(tmp_path / "run").attempt(0)
    attempt.path.mkdir(parents=True)
    create_beats(attempt.beats, 1)
    watch = Watch(attempt, WorkerGroup.ordered(tmp_path / "group", Seat((1,)), "fork"), Reaper(), tmp_path)
    with subprocess.Popen(["sleep", "600"]) as rank:
        try:
            BeatWriter(attempt.beats, 0, rank.pid).close()
            watch.look(time.monotonic(), set(range(1000)))
            assert watch.ranks[0].pid == rank.pid and gone(watch) == []
            # From then on it does.
            watch.look(time.monotonic(), {watch.ranks[0].fd})
            assert gone(watch) == [0] and not watch.ranks
        finally:
            watch.close()
            rank.kill()


def test_a_rank_that_ends_before_its_first_beat(tmp_path: Path) -> None:
    """Its launcher waits for the others. It is seen at once, with its status; one that lives will be a rank."""
    attempt = RunDir(tmp_path / "run").attempt(0)
    attempt.path.mkdir(parents=True)
    create_beats(attempt.beats, 2)
    group = WorkerGroup.ordered(tmp_path / "group", Seat((2,)), "fork")
    ranks = "r = [subprocess.Popen(['sleep', '600']) for _ in range(2)]; print(*(each.pid for each in r), flush=True)"
    code = f"import subprocess, sys; {ranks}; sys.stdin.read(); [each.kill() for each in r]"
    launcher = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    first, second = map(int, launcher.stdout.readline().split())
    group.born(launcher.pid)
    watch = Watch(attempt, group, Reaper(), tmp_path)
    try:
        for rank, pid in enumerate((first, second)):
            group.gate.ready(rank).write_text(str(pid))
        watch.look(1.0, set())
        assert watch.exits == [] and [member.pid for member in watch.group().unborn] == [first, second]
        os.kill(second, signal.SIGKILL)
        until(lambda: not is_running(second))
        watch.look(2.0, set())
        assert [(each.rank, each.status) for each in watch.exits] == [(1, -signal.SIGKILL)]
        assert [member.pid for member in watch.group().unborn] == [first]
        watch.look(3.0, set())
        assert len(watch.exits) == 1
    finally:
        launcher.communicate("")
        watch.close()
        group.dissolve()


def test_a_wait_between_two_clocks_makes_no_process_younger(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.clock_gettime, time.monotonic

    def late(clock: int) -> float:
        time.sleep(0.3)
        return real[0](clock)

    def later() -> float:
        time.sleep(0.3)
        return real[1]()

    with subprocess.Popen(["sleep", "600"]) as process:
        at = time.monotonic()
        try:
            with monkeypatch.context() as patch:
                patch.setattr(time, "clock_gettime", late)
                patch.setattr(time, "monotonic", later)
                proctree.Process.as_of(process.pid, at).close()
        finally:
            process.kill()
