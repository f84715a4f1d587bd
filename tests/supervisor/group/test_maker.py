"""The maker of groups, beside a fork server that does not answer."""

from __future__ import annotations

import signal
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.group.maker import _FORGOTTEN, _STILL, _STOPPED, GroupMaker
from supervisor.group.seat import Seat
from supervisor.process.proctree import Process
from supervisor.run.spec import Spec
from tests.support.waiting import until
from trainer.rundir.layout import RunDir
from trainer.rundir.machine.proc import stat


class Silent:
    """A fork server that was ready once, and makes no group."""

    ready, loading, unfit, stayed, found = True, False, "", False, None

    def __init__(self, pid: int) -> None:
        self.process, self.pid, self.serving = Process(pid), pid, pid
        self.born = deque[tuple[str, int]]()

    def listen(self) -> None: ...

    def fork(self, *_: object) -> None: ...

    def close(self) -> None:
        self.process.close()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def ordered(folder: Path, server: Any) -> tuple[GroupMaker, Any]:
    """A maker, and the group that `server` does not make."""
    maker = GroupMaker(Spec("r", "m", ("x.py",), False, 1, "/"), RunDir(folder), {}, lambda *_, **__: None)
    maker.server = server
    RunDir(folder).standby.mkdir()
    return maker, maker.fork(server, Seat((1,)))


@pytest.mark.parametrize(("stopped", "limit"), [(True, _STOPPED), (False, _STILL)])
def test_a_fork_server_that_stands_still_is_given_up(
    tmp_path: Path, child: subprocess.Popen[bytes], stopped: bool, limit: float
) -> None:
    """Its group is known never to be born, so that the attempt gets another one. A pause of ours tells nothing, and an
    answer is an answer."""
    if stopped:
        child.send_signal(signal.SIGSTOP)
    until(lambda: (found := stat(child.pid)) is not None and found.state == ("T" if stopped else "S"))
    server = Silent(child.pid)
    maker, group = ordered(tmp_path, server)
    for now in (1000.0, 1100.0, 1200.0):
        maker.listen(now)
    server.born.append(("another", 1))
    maker.listen(1300.0)
    looks = [1300.0 + 0.2 * look for look in range(1, 120)]

    for now in looks:
        assert not group.stillborn
        maker.listen(now)
        if maker.server is None:
            break

    assert group.stillborn and "stands still" in maker.why and not group.crowded
    assert limit - 0.2 <= now - 1300.0 <= limit + 0.5
    assert child.wait(10) == -signal.SIGKILL


def test_a_group_that_there_was_no_room_for(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    """The fork server lives, and may be asked again."""
    server = Silent(child.pid)
    maker, group = ordered(tmp_path, server)
    server.born.append((str(group.gate.path), 0))
    maker.listen(0.0)
    assert group.stillborn and group.crowded and maker.ready is not None
    maker.close()


def test_losses_count_for_a_while(tmp_path: Path) -> None:
    """What dies together is one loss; three of them end it; those of long ago count no more."""
    maker = GroupMaker(Spec("r", "m", ("x.py",), False, 1, "/"), RunDir(tmp_path), {}, lambda *_, **__: None)
    for now in (10.0, 10.1, 20.0, 20.1, 30.0 + _FORGOTTEN, 1000.0 + _FORGOTTEN):
        maker.lost(now, "it was killed")
        assert not maker.hopeless
    maker.lost(1010.0 + _FORGOTTEN, "it was killed")
    maker.lost(1020.0 + _FORGOTTEN, "it was killed")
    assert maker.hopeless


def test_a_fork_server_without_an_order_may_be_silent(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    maker, group = ordered(tmp_path, Silent(child.pid))
    maker.disband(group)
    for look in range(100):
        maker.listen(0.2 * look)
    assert maker.ready is not None
    maker.close()


def test_a_fork_server_that_imports_may_be_silent(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    """It waits for a child that tries an import, which has a limit of its own; a stopped one does not."""
    server: Any = Silent(child.pid)
    server.loading = True
    maker, group = ordered(tmp_path, server)
    for look in range(int(5 * (_STILL + 1))):
        maker.listen(0.2 * look)
    assert maker.ready is not None and not group.stillborn
    child.send_signal(signal.SIGSTOP)
    until(lambda: (found := stat(child.pid)) is not None and found.state == "T")
    for look in range(int(5 * (_STOPPED + 1))):
        maker.listen(1000.0 + 0.2 * look)
    assert maker.ready is None and group.stillborn
