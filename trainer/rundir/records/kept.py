"""A fork server that stays after its run (--keep-warm): how it is asked, at a socket of the user's runtime folder.

    {"ask": "who"}                    -> {"pid", "script", "cwd", "left_s"}
    {"ask": "take", …}, 4 descriptors -> {"pid", "why": ""}: it serves the one who asked, and the socket is gone
    {"ask": "leave"}                  -> {"pid"}: it ends

A message is its length, 4 bytes, and JSON. Both ends ask the kernel who the other one is (SO_PEERCRED), and speak to
their own user alone.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from ..files.codec import decode, encode

T = TypeVar("T")
TIME_LIMIT = 10.0
"""Seconds that one end waits for the other in the middle of a message, which may get no time on a busy machine."""
SUFFIX = ".sock"
_MOST = 1 << 24
_LENGTH = struct.Struct("!I")
_OWN = re.compile(
    r"SUPERVISE_.*|WANDB_RUN_ID|_|SHLVL|OLDPWD|WINDOWID|TERM_SESSION_ID|SSH_(CLIENT|CONNECTION|TTY)|XDG_SESSION_ID"
    r"|TMUX|TMUX_PANE|STY|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_EXEC_PID"
)
"""The variables of a terminal, a session or a run. No import depends on them."""


class Stay(msgspec.Struct):
    """Asks a fork server to stay: for so many seconds, at the socket `path`."""

    path: str
    seconds: float
    script: str


class Ask(msgspec.Struct):
    """A question to a fork server that stays. To take it, one gives the environment and the inheritance that it would
    have, started now."""

    ask: str
    environ: dict[str, str] = {}
    inherited: dict[str, str] = {}


class Answer(msgspec.Struct):
    pid: int
    why: str = ""
    """Why it was not taken."""
    script: str = ""
    cwd: str = ""
    left_s: float = 0.0


def now() -> float:
    """Seconds since boot, the sleep of the machine included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def differs(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The first name that has another value in the other mapping, of those that matter; empty if there is none."""
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    return next((name for name in names if not _OWN.fullmatch(name)), "")


@contextmanager
def beside(path: Path) -> Iterator[str]:
    """A name of `path` that is short enough for a socket, whatever the folder is called. OSError if there is no such
    folder."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_own(peer: socket.socket) -> bool:
    """Whether the other end is a process of the same user."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.geteuid())


def send(to: socket.socket, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
    """OSError if the other end does not take it."""
    body = encode(message)
    socket.send_fds(to, [_LENGTH.pack(len(body))], fds)
    to.sendall(body)


def receive(peer: socket.socket, kind: type[T]) -> tuple[T, list[int]]:
    """The next message, and the descriptors that came with it. OSError or ValueError if there is none of that kind;
    then no descriptor stays open."""
    head, fds, _, _ = socket.recv_fds(peer, _LENGTH.size, 8, socket.MSG_WAITALL | socket.MSG_CMSG_CLOEXEC)
    try:
        if len(head) < _LENGTH.size or (size := _LENGTH.unpack(head)[0]) > _MOST:
            raise ValueError("it is no message of ours")
        body = bytearray()
        while len(body) < size:
            if not (more := peer.recv(min(size - len(body), 1 << 16))):
                raise ValueError("the message has no end")
            body += more
        return decode(bytes(body), kind), list(fds)
    except (OSError, ValueError):
        for fd in fds:
            os.close(fd)
        raise
