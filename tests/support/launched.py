"""Commands of `supervise` as forks of a process that has its modules, and torch, imported (warm.py): one for all tests
of a session, and one for each framework that they want, too."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support import warm

_READ_BY_IMPORTS = (
    *("PYTHON", "LD_", "OMP_", "MKL_", "KMP_", "TORCH_", "TORCHD", "TORCHI", "PYTORCH", "CUDA", "MALLOC"),
    *("HOME", "PATH", "LANG", "LC_", "TMP", "TERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI"),
)
"""The beginnings of variables that Python, torch or a module of ours may read while it is imported."""
_OF_TWO_RANKS = ("OMP_NUM_THREADS", "1")
"""What each run of several ranks has anyway; warm.py sees to it."""


class Launched:
    """A process that is not our child, with those methods of a Popen that tests use."""

    def __init__(self, pid: int, status: int) -> None:
        self.pid, self._status = pid, status
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"supervise, pid {self.pid}", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            # It may have been waited for already, and its status is on the way.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float | None) -> int | None:
        # Not select(): it takes no descriptors from 1024 on, and a test may have left many open.
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        if self.returncode is None and poll.poll(None if seconds is None else 1000 * seconds):
            # Nothing: the process that forked it is dead, and that is a failure, too.
            self.returncode = int(os.read(self._status, 64))
            os.close(self._status)
        return self.returncode


class Warm:
    """A process with all imports done."""

    def __init__(
        self,
        env: Mapping[str, str],
        requests: socket.socket,
        process: subprocess.Popen[bytes] | Launched | None = None,
    ) -> None:
        """It was started with `env`, and is asked over `requests`. With `process` it is this process's own, and goes
        with it."""
        self._env, self._requests, self._process = _read_by_imports(env), requests, process
        atexit.register(self.end)

    @classmethod
    def own(cls, env: Mapping[str, str], modules: Sequence[str]) -> Warm:
        """A new one. The forks of its fork server have `modules` imported, beside torch."""
        with _listener() as listener, Path(os.devnull).open("wb") as out:
            process = subprocess.Popen(_command(modules, 0), env=_with_room(env), stdin=listener, stdout=out)
            return cls(env, _connected(listener.getsockname()), process)

    @classmethod
    def shared(cls, env: Mapping[str, str], modules: Sequence[str], session: str) -> Warm:
        """That of all processes of a test session. The first that asks for it starts it; it ends with their parent."""
        kind = hashlib.sha256(json.dumps([modules, _read_by_imports(env)]).encode()).hexdigest()[:16]
        address = f"\0supervise-tests {session} {kind}".encode()
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                return cls(env, _connected(address))
            try:
                listener = _listener(address)
            except OSError:
                # Another process has it, and does not listen yet.
                time.sleep(0.01)
                continue
            with listener:
                # Not posix_spawn(): there glibc has its own signals ignored, and forks would show it.
                command = _command(modules, os.getppid())
                process = subprocess.Popen(command, env=_with_room(env), stdin=listener, stdout=subprocess.DEVNULL)
                # Nobody here waits for its end.
                process.returncode = 0

    def fits(self, env: Mapping[str, str]) -> bool:
        """Whether what it has imported is what would be imported with `env`."""
        return _read_by_imports(env) == self._env

    def start(self, command: Sequence[str], cwd: Path, env: Mapping[str, str], out: IO[str], err: IO[str]) -> Launched:
        """`command` without its interpreter: a script with its arguments, or -c and code."""
        with Path(os.devnull).open("rb") as stdin:
            asked = {"command": list(command), "cwd": str(cwd), "env": dict(env), "umask": warm.umask()}
            return self._ask(asked, stdin.fileno(), out.fileno(), err.fileno())

    def on(self, machine: int) -> Warm:
        """A fork of it on the machine (machines.py) whose first process has that pid."""
        with _listener() as listener:
            process = self._ask({"machine": machine}, listener.fileno())
            return Warm(self._env, _connected(listener.getsockname()), process)

    def _ask(self, request: Mapping[str, object], *fds: int) -> Launched:
        ours, theirs = os.pipe()
        socket.send_fds(self._requests, [json.dumps(request).encode()], [*fds, theirs])
        os.close(theirs)
        pid = self._requests.recv(64)
        assert pid, "the process to fork from has ended"
        return Launched(int(pid), ours)

    def end(self) -> None:
        """It is asked nothing more, and if it is our own it is gone; what it has forked is not touched."""
        atexit.unregister(self.end)
        self._requests.close()
        if self._process is not None:
            self._process.wait()


def _command(modules: Sequence[str], owner: int) -> list[str]:
    """warm.py with its arguments, and with room for those of what it forks."""
    return [sys.executable, "-u", warm.__file__, json.dumps(modules), str(owner), *["room for command lines"] * 100]


def _with_room(env: Mapping[str, str]) -> dict[str, str]:
    return {**env, warm.ROOM: "x" * (1 << 16)}


def _listener(address: bytes = b"") -> socket.socket:
    """It listens there, or where the system chooses."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        made.bind(address)
        made.listen(64)
    except OSError:
        made.close()
        raise
    return made


def _connected(address: bytes) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        made.connect(address)
    except OSError:
        made.close()
        raise
    return made


def _read_by_imports(env: Mapping[str, str]) -> dict[str, str]:
    read = (item for item in env.items() if item[0].startswith(_READ_BY_IMPORTS))
    return {name: value for name, value in read if (name, value) != _OF_TWO_RANKS}


_known: dict[str, Warm] = {}


def started(env: Mapping[str, str], modules: tuple[str, ...] = ()) -> Warm:
    """The one of this session with `modules` that is as good as one started with `env`."""
    key = json.dumps([modules, _read_by_imports(env)])
    if key not in _known:
        session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
        _known[key] = Warm.shared(env, modules, session) if session else Warm.own(env, modules)
    return _known[key]


def warm_for(env: Mapping[str, str], modules: tuple[str, ...] = ()) -> Warm | None:
    """The one of this session with `modules`, if it is as good for `env` as what would be imported."""
    ours = started(environment(), modules)
    return ours if ours.fits(env) else None


def environment(**more: str) -> dict[str, str]:
    """Of a shell in which nobody supervises anything."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SUPERVISE_", "TORCHELASTIC_", "PET_"))}
    return {**kept, **more}
