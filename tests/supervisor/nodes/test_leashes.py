"""A rank's leash, as the leader sees it: its end is told at once, and only that of a process."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor.nodes import hub
from supervisor.nodes.hub import Hub
from supervisor.nodes.leash import LeashDesk
from supervisor.nodes.line import Line
from supervisor.nodes.wire.beats import Bond
from supervisor.nodes.wire.dialing import connect
from tests.support.links import HOST, TOKEN, Loop, admitted, linked
from tests.support.supervised import ROOT
from tests.support.waiting import until

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


@pytest.fixture
def desk(tmp_path: Path, leader: Hub) -> Iterator[LeashDesk]:
    with contextlib.closing(LeashDesk(tmp_path, lambda now: connect(HOST, leader.port, TOKEN, now))) as made:
        yield made


def asked(desk: LeashDesk, text: bytes) -> socket.socket:
    """A customer who has said that."""
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(desk.path))
    made.sendall(text)
    return made


def hung_up_on(desk: LeashDesk, customer: socket.socket) -> Callable[[], bool]:
    """Whether the customer got nothing, and will not."""

    def look() -> bool:
        desk.tick(1, 0.0)
        return bool(select.select([customer], [], [], 0)[0])

    return look


@pytest.mark.parametrize("text", [b"99999999999999999999 0\n", b"1\n", b"one two\n", b"1" * 48])
def test_who_asks_for_nonsense(desk: LeashDesk, text: bytes) -> None:
    """Gets nothing, and the next one gets its leash."""
    with contextlib.closing(asked(desk, text)) as first, contextlib.closing(asked(desk, b"3 2\n")) as second:
        until(hung_up_on(desk, first))
        assert first.recv(1) == b""
        until(hung_up_on(desk, second))
        data, fds, _, _ = socket.recv_fds(second, 1, 1)
    assert (data, len(fds)) == (b"!", 1)
    os.close(fds[0])


class Full:
    """A listening socket, in a process that has no descriptor left while `full`."""

    def __init__(self, of: socket.socket) -> None:
        self._of, self.full = of, True

    def accept(self) -> object:
        if self.full:
            raise OSError(errno.EMFILE, "Too many open files")
        return self._of.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self._of, name)


def test_no_descriptor_for_a_customer(desk: LeashDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is looked at for a moment, since who waits would be seen again and again; then it is let in."""
    full = Full(desk._socket)
    monkeypatch.setattr(desk, "_socket", full)
    with contextlib.closing(asked(desk, b"3 2\n")) as customer:
        desk.tick(1, 100.0)
        assert desk.waits() == []
        again = desk.deadline()
        assert again is not None and 100.0 < again < 100.5
        full.full = False
        desk.tick(1, 100.0)
        assert desk.waits() == []
        desk.tick(1, again)
        assert desk.deadline() is None and (full.fileno(), False) in desk.waits()
        until(hung_up_on(desk, customer))
        data, fds, _, _ = socket.recv_fds(customer, 1, 1)
    assert (data, len(fds)) == (b"!", 1)
    os.close(fds[0])
