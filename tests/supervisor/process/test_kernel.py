"""Which waits only the group itself can end."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from supervisor.process.kernel import LONG_WAIT, Close, closely, descendants, waiting
from tests.support.waiting import until

WAITS = """
import queue, threading
threading.Thread(target=threading.Event().wait, args=(%s,), daemon=True).start()
print(flush=True)
queue.SimpleQueue().get()
"""


@pytest.mark.parametrize(("limit", "waits"), [(None, 0.0), (LONG_WAIT / 20, LONG_WAIT / 20), (LONG_WAIT * 2, 0.0)])
def test_a_thread_that_the_time_wakes_up(limit: float | None, waits: float) -> None:
    """The main thread waits for a thread that waits itself: that one has its time before the rank is held."""
    began = time.monotonic()
    rank = subprocess.Popen([sys.executable, "-c", WAITS % limit], stdout=subprocess.PIPE)
    try:
        assert rank.stdout is not None and rank.stdout.readline()
        until(lambda: (wait := waiting(rank.pid)) is not None and wait.name == "futex")
        until(lambda: bool(closely(rank.pid).held))
        assert not descendants(rank.pid)
        looks = [closely(rank.pid) for _ in range(100)]
        assert len({look.held for look in looks}) == 1
        assert all(began + waits <= look.until <= time.monotonic() + waits for look in looks)
    finally:
        rank.kill()
        rank.communicate()


def test_held_after_the_time_of_others() -> None:
    """A thread that wakes up and waits again gets no more time, unless the main one has moved meanwhile."""
    first = Close(0.0, False, "futex 1", until=110.0).after(None)
    again = Close(0.0, False, "futex 1", until=120.0, polls=None).after(first)
    assert (first.held_by(109.9), again.held_by(110.0), again.polls) == ("", "futex 1", False)
    moved = Close(0.0, False, "futex 2", until=121.0).after(again)
    assert (moved.held_by(120.9), moved.held_by(121.0)) == ("", "futex 2")
    assert Close(0.0, False, "").after(moved).held_by(200.0) == ""
