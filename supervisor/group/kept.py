"""Fork servers that stay after their runs (--keep-warm): where they wait, who they are, how they are taken and ended.

A socket in a folder that only this user may enter. The process behind it is spoken to only if it is this user's.
"""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from supervisor.errors import Refusal
from supervisor.process.proctree import Process
from supervisor.run.folder.user_folders import runtime
from supervisor.run.spec import LONGEST_KEPT, Spec
from trainer.rundir.duration import spelled
from trainer.rundir.machine.inheritance import inherited
from trainer.rundir.programs import STARTUP
from trainer.rundir.records import kept
from trainer.rundir.records.kept import SUFFIX, Answer, Ask

_LEAVES = 10.0
"""Seconds that one that was told to leave gets to be gone. It has torch to unload, perhaps on a busy machine."""


class Cold(Exception):
    """There is no fork server to take. The text says why; it is empty if none has stayed."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A fork server that waits for the next run of `script` in `cwd`, for `left_s` seconds more."""

    path: Path
    pid: int
    script: str
    cwd: str
    left_s: float


def check(seconds: float, standby: bool) -> None:
    """Refusal if no fork server can stay for so long."""
    if seconds and not standby:
        raise Refusal("--keep-warm keeps the process that the standby is forked from: leave out --no-standby")
    if seconds > LONGEST_KEPT:
        raise Refusal(f"--keep-warm {spelled(seconds)}: give at most {spelled(LONGEST_KEPT)}")
    if seconds and runtime() is None:
        raise Refusal("--keep-warm: no folder for a socket that only you may enter; set XDG_RUNTIME_DIR to one")


def place(spec: Spec) -> Path:
    """The socket of the fork server for the script of `spec`. Cold if this user can have no folder for it."""
    what = [*sys.version_info, sys.executable, str(STARTUP), spec.cwd, spec.module, spec.command[0]]
    folder = runtime()
    if folder is None:
        raise Cold("there is no folder for a socket that only this user may enter")
    return folder / f"{hashlib.sha256(repr(what).encode()).hexdigest()[:24]}{SUFFIX}"


def take(spec: Spec, env: Mapping[str, str], fds: list[int]) -> Process:
    """The fork server serves this run now. `env` is the environment that it would be started in, `fds` the script's
    stdin, its requests, its answers and its log. Cold if there is none, or not one for this run."""
    path = place(spec)
    try:
        with _connected(path) as peer:
            kept.send(peer, Ask("take", dict(env), inherited()), fds)
            answer = kept.receive(peer, Answer)[0]
        if answer.why:
            raise Cold(answer.why)
        if Path(answer.cwd).resolve() != Path(spec.cwd).resolve():
            # Without a request it ends.
            raise Cold(f"its folder is {answer.cwd} now")
        return Process(answer.pid)
    except FileNotFoundError:
        raise Cold("") from None
    except (OSError, ValueError) as error:
        raise Cold(f"it does not answer ({error})") from None


def found() -> list[Kept]:
    """All fork servers of this user that wait. The sockets of dead ones are removed."""
    folder = runtime()
    return [one for path in sorted(folder.glob(f"*{SUFFIX}")) if (one := at(path))] if folder is not None else []


def known(spec: Spec) -> Kept | None:
    """The fork server that waits for the script of `spec`."""
    with contextlib.suppress(Cold):
        return at(place(spec))
    return None


def end(one: Kept) -> str | None:
    """It was told to leave, and is gone. Otherwise: why not."""
    try:
        with contextlib.closing(Process(one.pid)) as process, _connected(one.path) as peer:
            kept.send(peer, Ask("leave"))
            kept.receive(peer, Answer)
            gone = select.select([process.fd], [], [], _LEAVES)[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
    except (OSError, ValueError) as error:
        return str(error)
    return None if gone else "it does not leave"


def at(path: Path) -> Kept | None:
    try:
        with _connected(path) as peer:
            kept.send(peer, Ask("who"))
            answer = kept.receive(peer, Answer)[0]
    except (OSError, ValueError):
        return None
    return Kept(path, answer.pid, answer.script, answer.cwd, answer.left_s)


@contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    """The fork server at `path`. OSError if there is none; if it is dead, its socket is removed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(kept.TIME_LIMIT)
        with kept.beside(path) as short:
            try:
                peer.connect(short)
            except ConnectionRefusedError:
                with contextlib.suppress(OSError):
                    Path(short).unlink()
                raise FileNotFoundError(path) from None
        if not kept.is_own(peer):
            raise PermissionError("it is another user's")
        yield peer
