"""The status of a process is its own, whoever had its pid before or has it since."""

from __future__ import annotations

import os
import signal

import pytest

from supervisor.process import reaper as reapers
from supervisor.process.proctree import Process
from supervisor.process.reaper import Reaper
from tests.support.pids import said
from tests.support.waiting import until
from trainer.rundir.machine.proc import stat

REUSED = """
from supervisor.process.proctree import Process
from supervisor.process.reaper import Reaper
reaper = Reaper()

def helper():
    "It ends with 0, as our child."
    pid = os.fork() or os._exit(0)
    started = stat(pid).started
    until(lambda: reaper.reap() or stat(pid) is None)
    return pid, started

def launcher():
    "It starts a rank, and reaps that when it gets a line."
    while sys.stdin.readline():
        pid = os.fork() or time.sleep(600)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitpid(pid, 0)[0], flush=True)

(their_in, ask), (read, their_out) = os.pipe(), os.pipe()
if os.fork() == 0:
    os.dup2(their_in, 0), os.dup2(their_out, 1), os.close(ask), os.close(read)
    launcher()
answers = os.fdopen(read)

def asked():
    os.write(ask, b"\\n")
    return int(answers.readline())

pid, started = helper()
next_is(pid, started)
rank = Process(asked())
began = stat(rank.pid).started
os.kill(rank.pid, signal.SIGKILL)
until(lambda: stat(rank.pid).state == "Z")
after = reaper.exit_code(rank)
assert asked() == rank.pid
next_is(rank.pid, began)
last, _ = helper()
print(json.dumps({"same": pid == rank.pid == last, "zombie": after, "gone": reaper.exit_code(rank)}))
"""
"""A helper has the pid of a rank before it, and another one after it. We reap both; the rank's launcher reaps it."""


def test_a_status_is_not_that_of_another_process_with_the_pid() -> None:
    found = said(REUSED)

    assert found["same"] and found["zombie"] == -signal.SIGKILL
    # Older kernels do not tell it any more.
    assert found["gone"] in (-signal.SIGKILL, None)


def test_a_status_is_known_after_the_end_and_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reapers, "_KEPT", 3)
    # Nothing else tells how they have ended.
    monkeypatch.setattr(reapers, "_pidfd_status", lambda fd: None)
    reaper, ended = Reaper(), []
    for number in range(5):
        if (pid := os.fork()) == 0:
            os._exit(number)
        ended.append(process := Process(pid))
        until(lambda process=process: _reaped(reaper, process))

    assert [reaper.exit_code(process) for process in ended] == [None, None, 2, 3, 4]
    for process in ended:
        process.close()


def _reaped(reaper: Reaper, process: Process) -> bool:
    reaper.reap()
    return stat(process.pid) is None
