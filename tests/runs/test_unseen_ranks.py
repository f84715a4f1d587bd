"""Ranks that have come since the supervisor looked: what is done to them is done once."""

from __future__ import annotations

import signal
import sys

from tests.support.scripts import SAVES_ON_TERM
from tests.support.supervised import Run
from tests.support.waiting import until

LATE = """
import os, time
from _supervisor.__main__ import main
from _supervisor.attempt import watch
look = watch.Watch.look
def slow(self, now, ended):
    look(self, now, ended)
    while not self.ranks and not os.path.exists("sent"):
        time.sleep(0.01)
watch.Watch.look = slow
main()
"""
"""A supervisor that stands still from its last look without ranks until it is asked to stop."""


def test_a_stop_before_the_ranks_are_seen(run: Run) -> None:
    """One TERM each, not one more by their launcher."""
    process = run.start("--nproc", "2", run.script(SAVES_ON_TERM), "0", program=[sys.executable, "-c", LATE])
    until(lambda: all((run.folder / f"up{rank}").exists() for rank in range(2)))
    process.send_signal(signal.SIGINT)
    (run.folder / "sent").touch()

    assert run.wait() == 103
    assert [(run.folder / f"terms{rank}").read_text() for rank in range(2)] == ["x", "x"]
