"""An attempt is over when nothing of it runs code, whoever its parents are; memory and ports can hold it up."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from supervisor.attempt import ending as endings
from supervisor.attempt.ending import Ending
from supervisor.process import family
from supervisor.process.proctree import Process
from tests.support.waiting import until
from trainer.rundir.machine import proc

TREE = """
import ctypes, os, threading, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # it keeps its orphans, as a supervisor does
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
for _ in range(2):
    if (pid := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:  # the child of one that leaves, with its own session
            os.write(1, b"%d\\n" % os.getpid())
            time.sleep(600)
        os._exit(0)
    os.waitpid(pid, 0)
os.write(1, b"0\\n")  # nobody is on the way out any more
time.sleep(600)
"""


@pytest.fixture
def tree() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        said = sorted(int(process.stdout.readline()) for _ in range(3))
        orphans = [Process(pid) for pid in said[1:]]
    yield process
    process.kill()
    process.wait()
    for orphan in orphans:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(orphan.fd, signal.SIGKILL)
        orphan.close()


def test_a_tree_is_killed_with_its_orphans(tree: subprocess.Popen[bytes]) -> None:
    """And what is spared is not."""
    held = Process(tree.pid)
    spared = subprocess.Popen(["sleep", "600"])
    others = {child.pid for child in psutil.Process().children()} - {tree.pid}
    try:
        ending = Ending("no-mark", lambda: {tree.pid: held}, foreign=False)
        members = ending.members(others)
        assert len(members) == 3 and tree.pid in members

        assert ending.force(others, time.monotonic()) == 3

        # `alive` no longer sees the orphans, which the tree kept. One may still wait for a CPU to die on.
        until(lambda: not ending.alive(others) and not any(map(proc.is_running, members)))
        assert spared.poll() is None
    finally:
        held.close()
        spared.kill()
        spared.wait()


def test_what_still_runs_is_waited_for(tree: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has only its memory to free is not, unless that memory or its port is needed."""
    held = Process(tree.pid)
    ending = Ending("no-mark", lambda: {tree.pid: held}, foreign=False)
    spared = {child.pid for child in psutil.Process().children(recursive=True)} - {tree.pid}
    assert ending.alive(spared) == (tree.pid,) and not ending.leaving

    monkeypatch.setattr(proc, "is_running", lambda pid: False)

    assert ending.alive(spared) == () and list(ending.leaving) == [tree.pid]
    assert ending.still_leaving() == [tree.pid]
    monkeypatch.setattr(family, "keeps_port", lambda pid: True)
    assert ending.alive(spared) == (tree.pid,)
    monkeypatch.setattr(family, "keeps_port", lambda pid: False)
    monkeypatch.setattr(endings, "available", lambda: -1)
    assert ending.alive(spared) == (tree.pid,)
    monkeypatch.undo()
    held.close()


def test_memory_of_a_gpu_is_waited_for_unless_the_next_one_has_it(
    tree: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Process(tree.pid)
    spared = {child.pid for child in psutil.Process().children(recursive=True)} - {tree.pid}
    monkeypatch.setattr(proc, "is_running", lambda pid: False)
    for uses, has, waited in ((True, False, True), (True, True, False), (False, False, False)):
        monkeypatch.setattr("supervisor.attempt.ending.has_gpu", lambda pid, uses=uses: uses)
        ending = Ending("no-mark", lambda: {tree.pid: held}, foreign=False)
        ending.steps([tree.pid])
        ending.next_has_memory = has
        assert ending.alive(spared) == ((tree.pid,) if waited else ())
        assert list(ending.on_gpu) == ([tree.pid] if uses else [])
    held.close()


def test_a_chosen_port_is_seen() -> None:
    assert not family.keeps_port(os.getpid())
    with socket.socket() as drawn:
        drawn.bind(("127.0.0.1", 0))
        drawn.listen()
        assert not family.keeps_port(os.getpid())
    for port in range(15000, 15100):
        with socket.socket() as chosen:
            try:
                chosen.bind(("127.0.0.1", port))
                chosen.listen()
            except OSError:
                continue
            assert family.keeps_port(os.getpid())
            return
    pytest.skip("a hundred ports are taken")
