"""Which ranks are taken for gone: none that has just shown up and lives."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from supervisor.attempt.watch import Watch
from supervisor.group.group import WorkerGroup
from supervisor.group.seat import Seat
from supervisor.process import proctree
from supervisor.process.reaper import Reaper
from trainer.rundir.layout import RunDir
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
