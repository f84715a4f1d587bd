"""A process is held, or it is gone: whatever has its pid now."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from supervisor.process.proctree import Process


def test_a_pid_that_is_a_threads_now() -> None:
    end, came = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (came.set(), end.wait()))
    thread.start()
    try:
        assert came.wait(10) and thread.native_id is not None
        with pytest.raises(ProcessLookupError):
            Process(thread.native_id)
    finally:
        end.set()
        thread.join()


def test_a_pid_that_is_a_sessions_still() -> None:
    """Its process is over and reaped; a child of it lives on in the session."""
    text = "import os, sys\nif os.fork(): os._exit(0)\nsys.stdin.read()"
    leader = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, start_new_session=True)
    try:
        leader.wait(10)
        os.killpg(leader.pid, 0)
        with pytest.raises(ProcessLookupError):
            Process(leader.pid)
    finally:
        assert leader.stdin is not None
        leader.stdin.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOENT])
def test_what_each_kernel_says(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(ProcessLookupError):
        Process(1)


def test_no_descriptor_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may well live."""

    def exhausted(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", exhausted)
    with pytest.raises(OSError, match="Too many"):
        Process(1)
