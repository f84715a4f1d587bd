"""A process with much memory is gone long after it runs no code any more: the sleep of the loop glances at it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from supervisor.attempt.ending import Ending
from supervisor.loop.sleep import GLANCE, sleep
from supervisor.process.proctree import Process
from tests.support.waiting import until


@contextmanager
def holding(megabytes: int) -> Iterator[Process]:
    """A process that has written so much memory of its own."""
    code = f"memory = bytearray({megabytes} << 20); memory[::4096] = b'x' * len(memory[::4096]); print(1, flush=True)"
    command = [sys.executable, "-c", f"{code}; __import__('time').sleep(600)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process, closing(Process(process.pid)) as held:
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        try:
            yield held
        finally:
            process.kill()


def test_who_is_looked_at() -> None:
    """By the memory that only it has: small ranks cost no glance, large ones do."""
    ending = Ending("m", dict, foreign=False)
    with holding(1) as small, holding(450) as large:
        assert (ending.is_slow(small.pid), ending.is_slow(large.pid)) == (False, True)


def test_the_sleep_ends_when_it_runs_no_code() -> None:
    """Killed, it is reported at the next glance, whether its memory is free by then or not."""
    read, write = os.pipe()
    with holding(300) as large:
        began = time.monotonic()
        assert sleep(2 * GLANCE, read, [], [large]) == set()
        assert time.monotonic() >= began + 2 * GLANCE
        os.kill(large.pid, signal.SIGKILL)
        until(large.is_leaving)
        assert sleep(60.0, read, [large.fd], [large]) == {large.fd}
    os.close(read)
    os.close(write)
