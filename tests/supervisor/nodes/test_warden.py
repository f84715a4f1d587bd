"""The warden, with real processes: whatever becomes of the supervisor, its ranks do not outlive their lease."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from supervisor.core.nodes.lease import Lease
from supervisor.nodes.lease import LeaseWord, boottime
from supervisor.nodes.warden import Warden
from supervisor.process.proctree import Process, marked
from tests.support.supervised import ROOT
from tests.support.waiting import until
from trainer.rundir.machine.proc import is_running, is_there

LEASE = 60.0
"""Longer than any machine stands still."""
RANK = "import time; time.sleep(600)"
SUPERVISOR = """
import os, signal, subprocess, sys, time
from pathlib import Path
from supervisor.core.nodes.lease import Lease
from supervisor.nodes.hub import Hub
from supervisor.nodes.lease import boottime
from supervisor.nodes.warden import start_warden
place, mark, lease = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
hub = Hub(("127.0.0.1", 0), b"the token of this run", lease, place)
warden = start_warden(place, mark)
hub.arm()
def start(mark, code):
    env = {**os.environ, "SUPERVISE_MARK": mark}
    return subprocess.Popen([sys.executable, "-S", "-c", code], env=env, start_new_session=True).pid
SLEEP = "import time; time.sleep(600)"
ranks = [start(mark + ".group", SLEEP) for _ in range(2)]
# A rank whose parent is gone, and a rank that forks.
start(mark + ".0", "import os, time; os.fork() and os._exit(0); time.sleep(600)")
start(mark + ".0", "import os, time\\nwhile os.fork(): time.sleep(0.05)\\ntime.sleep(600)")
flush, other = start(mark + ".flush", SLEEP), start(mark + "x.0", SLEEP)
print(warden.pid, flush, other, flush=True)
for word in sys.stdin:
    if word == "end\\n":
        hub.clear()
        hub.close()
        print("ended", flush=True)
    elif word == "stand still\\n":
        with hub._lock:
            # Nobody renews it any more.
            hub._put(Lease(until=boottime() + 0.5, armed=True))
            print("it will", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
    elif word == "clear\\n":
        hub.clear()
        print("cleared", flush=True)
"""


@dataclass
class Node:
    supervisor: subprocess.Popen[str]
    warden: int
    flush: int
    other: int
    mark: str

    def guards(self) -> bool:
        """Whether the warden has begun: from then on it ignores signals."""
        ignored = re.search(r"SigIgn:\t(\w+)", Path(f"/proc/{self.warden}/status").read_text())
        return ignored is not None and bool(int(ignored[1], 16) >> (signal.SIGUSR2 - 1) & 1)

    def ranks(self) -> list[int]:
        return [process.pid for process in marked(self.mark) if process.pid != self.flush]

    def say(self, word: str) -> str:
        assert self.supervisor.stdin is not None and self.supervisor.stdout is not None
        self.supervisor.stdin.write(f"{word}\n")
        self.supervisor.stdin.flush()
        return self.supervisor.stdout.readline().strip()

    def killed(self) -> None:
        """The supervisor is killed, and its ranks end, also those that are forked meanwhile."""
        self.supervisor.kill()
        until(lambda: not self.ranks())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    mark = f"warden-{secrets.token_hex(6)}"
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path), mark, str(LEASE)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = list(map(int, process.stdout.readline().split()))
        made = Node(process, *pids, mark)
        try:
            until(lambda: len(made.ranks()) >= 5 and made.guards())
            yield made
        finally:
            process.kill()
            # Some of them fork.
            while left := [pid for pid in [*pids, *made.ranks()] if is_running(pid)]:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def test_a_killed_supervisor(node: Node) -> None:
    """Its ranks, their orphans and those that are being forked are gone; a flush and other runs' processes
    live, and the warden is gone, too."""
    node.killed()
    until(lambda: not is_running(node.warden))
    assert is_running(node.flush) and is_running(node.other)


ANOTHER = """
import os, subprocess, sys
env = {**os.environ, "SUPERVISE_MARK": sys.argv[1] + ".1", "SUPERVISE_SUPERVISOR_PID": str(os.getpid())}
ranks = [subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], env=env).pid for _ in range(2)]
print(*ranks, flush=True)
sys.stdin.read()
"""


def test_another_supervisor_that_has_taken_over(node: Node) -> None:
    """Ranks that it has started live on when the first one dies, though they have the same mark. Those that say they
    are of a supervisor that is not above them do not."""
    command = [sys.executable, "-c", ANOTHER, node.mark]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as another:
        assert another.stdin is not None and another.stdout is not None
        theirs = [int(pid) for pid in another.stdout.readline().split()]
        env = {**os.environ, "SUPERVISE_MARK": f"{node.mark}.1", "SUPERVISE_SUPERVISOR_PID": str(another.pid)}
        orphan = "setsid sleep 600 > /dev/null 2>&1 & echo $!"
        told = subprocess.run(["sh", "-c", orphan], env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
        node.supervisor.kill()
        until(lambda: not is_running(node.warden))
        assert set(node.ranks()) == set(theirs) and not is_running(int(told))
        for pid in theirs:
            os.kill(pid, signal.SIGKILL)
        another.stdin.close()


def test_a_stopped_supervisor(node: Node, tmp_path: Path) -> None:
    """Its ranks are gone when the lease is over, and not before."""
    word = LeaseWord(tmp_path, writes=False)
    first = word.read().until
    until(lambda: word.read().until > first)
    assert len(node.ranks()) >= 5, "a lease that is renewed does not end"
    assert node.say("stand still") == "it will"
    until(lambda: not node.ranks())
    assert boottime() >= word.read().until
    node.supervisor.send_signal(signal.SIGCONT)
    assert node.say("clear") == "cleared" and is_running(node.warden), "it goes on"


def test_the_end_of_a_run(node: Node) -> None:
    """The warden ends, and leaves to the supervisor what is left."""
    assert node.say("end") == "ended"
    until(lambda: not is_running(node.warden))
    assert len(node.ranks()) >= 5


def test_a_signal_to_all(node: Node) -> None:
    """An engine's signals to every process of a job do not end the warden before its time."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(node.warden, number)
    time.sleep(0.05)
    assert is_running(node.warden)
    node.killed()


@pytest.mark.parametrize("within", [1.0, 0.0])
def test_nobody_was_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: float) -> None:
    """The supervisor has died right after it started ranks, before the warden has seen them: they are found all the
    same, also where one try is too short for all of them."""
    monkeypatch.setattr("supervisor.nodes.warden._WITHIN", within)
    mark = f"warden-{secrets.token_hex(6)}"
    ranks = [
        subprocess.Popen([sys.executable, "-S", "-c", RANK], env={**os.environ, "SUPERVISE_MARK": f"{mark}.0"})
        for _ in range(4)
    ]
    dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
    supervisor = Process(dead.pid)
    dead.wait()
    try:
        until(lambda: len(marked(mark)) == 4)
        made = LeaseWord(tmp_path, writes=True)
        made.put(Lease(until=boottime() + 60.0, armed=True))
        Warden(LeaseWord(tmp_path, writes=False), mark, supervisor).watch()
        until(lambda: not any(map(is_running, [rank.pid for rank in ranks])))
    finally:
        supervisor.close()
        for rank in ranks:
            rank.kill()
            rank.wait()


def test_ranks_that_nobody_reaps(tmp_path: Path) -> None:
    """They were known, and stay zombies, as under an init that reaps nobody: the warden is done once they are dead."""
    mark = f"warden-{secrets.token_hex(6)}"
    env = {**os.environ, "SUPERVISE_MARK": f"{mark}.0"}
    ranks = [subprocess.Popen([sys.executable, "-S", "-c", "input()"], env=env, stdin=subprocess.PIPE) for _ in "ab"]
    LeaseWord(tmp_path, writes=True)
    supervisor = Process(os.getpid())
    try:
        until(lambda: len(marked(mark)) == 2)
        warden = Warden(LeaseWord(tmp_path, writes=False), mark, supervisor)
        warden._walk(0.0)
        assert set(warden._known) == {rank.pid for rank in ranks}
        assert warden.clear() == 2
        until(lambda: not any(map(is_there, warden._known)))
        assert warden.clear() == 0
    finally:
        supervisor.close()
        for rank in ranks:
            rank.communicate()


def test_another_supervisor_has_begun(tmp_path: Path) -> None:
    """It has made the lease word anew: what it starts is not killed by the warden of the dead one."""
    old = LeaseWord(tmp_path, writes=True)
    assert old.stands
    LeaseWord(tmp_path, writes=True)
    assert not old.stands


def test_nothing_of_the_run_is_held(node: Node) -> None:
    """Whoever waits for the end of our output does not wait for the warden. It has the lease open, and no more."""

    def held() -> set[str]:
        # While it starts, it still reads its program, and a file may be closed between the list and the look.
        with contextlib.suppress(FileNotFoundError):
            held = {os.readlink(entry) for entry in Path(f"/proc/{node.warden}/fd").iterdir()}  # noqa: PTH115
            return {Path(path).name for path in held if not path.startswith(("anon_inode:", "/proc"))}
        return set()

    until(lambda: held() == {"null", "lease"})
    assert os.readlink(f"/proc/{node.warden}/cwd") == "/"  # noqa: PTH115
