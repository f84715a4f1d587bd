"""The machines that the tests of several nodes are tried on are as separate as real ones, and fail as they do."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.machines import Machine, missing, network
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SERVER = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as server:
    held = []
    print("listens", flush=True)
    while True:
        held.append(server.accept()[0])
        held[-1].sendall(b"hello")
"""
CLIENT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 5000), timeout=float(sys.argv[2])) as to:
        print(to.recv(5).decode(), flush=True)
        to.settimeout(None if sys.argv[3:] else 0.01)
        print("closed" if to.recv(1) == b"" else "more")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Machine]]:
    with network(3) as made:
        yield made


def said(machine: Machine, *command: str) -> list[str]:
    done = subprocess.run([*machine.inside, *command], capture_output=True, text=True, check=True)
    return done.stdout.split()


def reached(machine: Machine, other: Machine, seconds: float = 60.0) -> bool:
    """Whether it is answered, within so many seconds."""
    return "hello" in said(machine, sys.executable, "-c", CLIENT, other.name, str(seconds))


def serve(machine: Machine) -> subprocess.Popen[str]:
    server = machine.popen([sys.executable, "-c", SERVER, machine.address], stdout=subprocess.PIPE)
    assert server.stdout is not None and server.stdout.readline() == "listens\n"
    return server


def test_each_has_its_own(machines: list[Machine]) -> None:
    """Name, boot id, shared memory, processes and clock."""
    look = (
        "hostname; cat /proc/sys/kernel/random/boot_id; ls /dev/shm; touch /dev/shm/mine; ls /proc | grep -c '^[0-9]'"
    )
    told = [said(machine, "sh", "-c", look) for machine in machines]
    assert [words[0] for words in told] == ["node0", "node1", "node2"]
    assert len({words[1] for words in told}) == 3
    assert all(len(words) == 3 and int(words[2]) < 8 for words in told)
    clocks = [float(said(m, sys.executable, "-c", "import time; print(time.monotonic())")[0]) for m in machines]
    assert 900 < clocks[1] - clocks[0] < 1100 and 900 < clocks[2] - clocks[1] < 1100


def test_cables(machines: list[Machine]) -> None:
    """A direction that is lost stays so until it is healed, and concerns nobody else."""
    server = serve(machines[0])
    try:
        for cut in (lambda: machines[1].drop("sent"), lambda: machines[1].drop("received"), machines[1].unplug):
            assert reached(machines[1], machines[0])
            cut()
            assert not reached(machines[1], machines[0], 0.4) and reached(machines[2], machines[0])
            machines[1].heal()
            machines[1].plug()
    finally:
        machines[0].kill_all()
        server.communicate()


def test_death_and_power(machines: list[Machine]) -> None:
    """The kernel of a machine whose processes die closes their connections; one without power says nothing."""
    ends = []
    # What comes is waited for; that nothing comes, for a second.
    for gone, seconds in ((machines[0].kill_all, 60.0), (machines[0].power_off, 1.0)):
        server = serve(machines[0])
        client = machines[1].popen(
            [sys.executable, "-c", CLIENT, machines[0].name, "60", "wait"], stdout=subprocess.PIPE
        )
        assert client.stdout is not None and client.stdout.readline() == "hello\n"
        gone()
        server.communicate()
        try:
            ends.append(client.communicate(timeout=seconds)[0])
        except subprocess.TimeoutExpired:
            ends.append("")
            machines[1].kill_all()
            client.communicate()
    assert ends == ["closed\n", ""]
    assert machines[0].pids() == {}
    machines[0].boot()
    assert said(machines[0], "ls", "/dev/shm") == []


def test_signals(machines: list[Machine]) -> None:
    """A process is known by its pid on the machine."""
    sleeper = machines[2].popen(["sleep", "100"])
    inside = until(lambda: next((pid for pid in machines[2].pids() if pid > 1), None))
    assert machines[2].send(inside, signal.SIGKILL) and sleeper.wait(60) in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert not machines[2].send(inside, signal.SIGKILL)
