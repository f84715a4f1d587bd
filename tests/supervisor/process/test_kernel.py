"""Which waits only the group itself can end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from supervisor.process.kernel import LONG_WAIT, closely, descendants, waiting
from tests.support.waiting import until

WAITS = """
import queue, threading
threading.Thread(target=threading.Event().wait, args=(%s,), daemon=True).start()
print(flush=True)
queue.SimpleQueue().get()
"""


@pytest.mark.parametrize(("limit", "held"), [(None, True), (LONG_WAIT / 20, False), (LONG_WAIT * 2, True)])
def test_a_thread_that_the_time_wakes_up(limit: float | None, held: bool) -> None:
    """The main thread waits for a thread that waits itself: if that one goes on in a while, so does the rank."""
    rank = subprocess.Popen([sys.executable, "-c", WAITS % limit], stdout=subprocess.PIPE)
    try:
        assert rank.stdout is not None and rank.stdout.readline()
        until(lambda: (wait := waiting(rank.pid)) is not None and wait.name == "futex")
        until(lambda: bool(closely(rank.pid).held) == held)
        assert not descendants(rank.pid)
        seen = {bool(closely(rank.pid).held) for _ in range(100)}
        assert seen == {held}
    finally:
        rank.kill()
        rank.communicate()
