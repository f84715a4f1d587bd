"""What a process waits in has a name."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.process.kernel import waiting
from supervisor.process.system_calls import names
from tests.support.waiting import until

ACCEPTS = "import socket; s = socket.create_server(('127.0.0.1', 0)); s.setblocking(True); s.accept()"
LOCKS = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX)"


@pytest.mark.parametrize(("program", "call"), [(ACCEPTS, "accept4"), (LOCKS, "fcntl")])
def test_a_process_that_waits(program: str, call: str, tmp_path: Path) -> None:
    """Also in a call of which we know nothing else."""
    with (tmp_path / "lock").open("w") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "lock")])
        try:
            until(lambda: (wait := waiting(process.pid)) is not None and wait.name == call)
        finally:
            process.kill()
            process.wait()


def test_every_machine_has_the_calls_that_are_judged() -> None:
    """Those that the supervisor knows more of than the name, by the numbers of the kernel's headers."""
    judged = "futex clock_nanosleep pselect6 ppoll epoll_pwait read pread64 write recvfrom recvmsg openat flock fsync"
    for machine in ("x86_64", "aarch64"):
        known = names(machine)
        assert {*f"{judged} fdatasync wait4 waitid".split()} <= {*known.values()}
        assert known[449] == "futex_waitv" and len(set(known.values())) == len(known)
    assert (names("x86_64")[202], names("aarch64")[98], names("s390x")) == ("futex", "futex", {})
