"""A rank's leash, as the leader sees it: its end is told at once, and only that of a process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from supervisor.nodes import hub
from supervisor.nodes.hub import Hub
from supervisor.nodes.leash import LeashDesk
from supervisor.nodes.line import Line
from supervisor.nodes.wire.beats import Bond
from tests.support.links import Loop, admitted, linked
from tests.support.supervised import ROOT

RANK = """
import os, sys, time
from pathlib import Path
from trainer.rank import leash
leash._TIME_LIMIT = 60
assert leash.hold(Path(sys.argv[1]), 3, int(sys.argv[2]))
child = os.fork()
if child:
    os.write(1, b"%d\\n" % child)
time.sleep(600)
"""


@contextlib.contextmanager
def rank(follower: Line, number: int) -> Iterator[subprocess.Popen[bytes]]:
    """A rank that has its leash, and a child that outlives it."""
    command = [sys.executable, "-c", RANK, str(follower.leash), str(number)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            yield process
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def test_leashes(leader: Hub, follower: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a rank is told, whatever its children do, and also when its supervisor's link is closed."""
    monkeypatch.setattr(LeashDesk, "TIME_LIMIT", 60.0)
    theirs, _, _ = admitted(leader, follower)
    follower.node = 1
    with rank(follower, 2) as first, rank(follower, 3) as second:
        assert {theirs.until(hub.Leash) for _ in (2, 3)} == {hub.Leash(1, 3, n, ended=False) for n in (2, 3)}
        first.kill()
        assert theirs.until(hub.Leash) == hub.Leash(1, 3, 2, ended=True)
        leader.drop(1)
        theirs.none(hub.Leash)
        second.kill()
        assert theirs.until(hub.Leash) == hub.Leash(1, 3, 3, ended=True)


def test_a_reset_is_no_proof(leader: Hub) -> None:
    """Only the end of a process ends its connection in order."""
    made = linked(leader)
    made.send(Bond(1, 3, 2).packed())
    theirs = Loop(leader)
    theirs.until(hub.Leash)
    made.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.close()
    theirs.none(hub.Leash, 0.2)
