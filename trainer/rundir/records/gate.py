"""The gate at which a worker group waits, its rendezvous done, until the supervisor makes an attempt of it.

A group is a folder `standby/0007/` of the run:

    gate           a FIFO; the supervisor holds its write end open: as long as it is open, the group waits
    rank0.ready    rank 0 waits at the gate; holds its pid
    launcher       the launcher's pid and when it started, so that no other process is ever taken for it
    release.json   {attempt, nproc, kind, cwd, env, arguments}, written before the gate is opened
    launcher.json  {exit_code, failures, mono}: how the launcher ended, unless it was killed
    launcher.log

The write end closes when the supervisor opens the gate, and when it dies, however it dies: then there is no
release.json, and who waits goes away. What was released trains on, and these files are how the next supervisor of the run
recognises it. They are about living processes, so none is synced: a power cut ends what they tell of.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.untrusted_files import read_json

GROUP = "SUPERVISE_GROUP"
"""In the environment of a rank: the folder of its group."""
PRELOAD = "SUPERVISE_PRELOAD"
"""In the environment of a rank that is to wait long: the file that lists what it imports meanwhile."""


def started_at(pid: int) -> int | None:
    """When the process with that pid started, in the kernel's ticks since boot; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[19])


@dataclass(frozen=True, slots=True)
class Gate:
    """The folder of one group."""

    path: Path

    @property
    def fifo(self) -> Path:
        return self.path / "gate"

    @property
    def release(self) -> Path:
        return self.path / "release.json"

    @property
    def launcher_log(self) -> Path:
        return self.path / "launcher.log"

    @property
    def launcher(self) -> Path:
        return self.path / "launcher"

    @property
    def launcher_report(self) -> Path:
        return self.path / "launcher.json"

    def ready(self, rank: int) -> Path:
        return self.path / f"rank{rank}.ready"

    def close(self) -> int:
        """The gate is there and shut; returns the fd that keeps it so. OSError where FIFOs cannot be made."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self.path.mkdir(mode=0o700)
        os.mkfifo(self.fifo, 0o600)
        # Read and write, or the open would wait for a reader.
        return os.open(self.fifo, os.O_RDWR | os.O_CLOEXEC)

    def open(self, fd: int, body: dict[str, Any]) -> None:
        """Everybody who waits, and who comes later, goes on with `body`."""
        self._put(self.release, body)
        os.close(fd)

    def enter(self) -> None:
        """This process is the group's launcher, for everybody to see."""
        with contextlib.suppress(OSError):
            self._put(self.launcher, {"pid": os.getpid(), "started": started_at(os.getpid())})

    def report(self, exit_code: int, failures: list[dict[str, Any]]) -> None:
        """How the launcher ends is known, whoever its parent is; `failures` are its ranks' {rank, pid, exit_code, mono}."""
        with contextlib.suppress(OSError):
            body = {"exit_code": exit_code, "failures": failures, "mono": time.monotonic()}
            self._put(self.launcher_report, body)

    def _put(self, path: Path, body: dict[str, Any]) -> None:
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(json.dumps(body).encode())
        temporary.rename(path)

    def wait(self, rank: int) -> dict[str, Any] | None:
        """What the supervisor released this rank with; None if it died instead."""
        # Opened before we say that we are ready, and not blocking: with no writer left, there is nothing to wait for.
        fd = os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._come(rank)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        while os.read(fd, 64):
            pass
        os.close(fd)
        return self.released()

    def _come(self, rank: int) -> None:
        """This rank waits at the gate, for everybody to see; on a full disk nobody sees which process it is."""
        try:
            self.ready(rank).write_text(str(os.getpid()))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def released(self) -> dict[str, Any] | None:
        """What is in release.json; None if there is none, ValueError if it is not a release."""
        try:
            body = read_json(self.release)
        except FileNotFoundError:
            return None
        shape = {"attempt": int, "env": dict, "arguments": list}
        if not isinstance(body, dict) or any(not isinstance(body.get(key), kind) for key, kind in shape.items()):
            raise ValueError(f"{self.release} is not a release")
        if not all(isinstance(text, str) for text in (*body["env"].values(), *body["arguments"])):
            raise ValueError(f"{self.release} is not a release: an argument or a variable is no text")
        return body
