"""The connection of a rank to the leader of a run over several nodes. Its end proves that the process is gone.

The supervisor of this node opens it and hands it over at a local socket (supervisor/nodes/leash.py). It is never read
or written here, and no child has it. A rank without one is missed a second later, when the lease of its node is over.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

_TIME_LIMIT = 0.5
"""Seconds that the start of a rank may wait for it."""
_HELD: list[int] = []


def hold(path: Path, attempt: int, rank: int) -> bool:
    """This process has its leash, if the supervisor gives one in time."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        asked.settimeout(_TIME_LIMIT)
        # The name of a socket has at most 107 bytes. So the folder is named by its descriptor.
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            asked.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        asked.sendall(f"{attempt} {rank}\n".encode())
        _, fds, _, _ = socket.recv_fds(asked, 1, 1)
        for fd in fds:
            os.set_inheritable(fd, False)
        if fds and not _HELD:
            os.register_at_fork(after_in_child=_drop)
        _HELD.extend(fds)
        return bool(fds)
    return False


def _drop() -> None:
    """A child that lives on must not keep its parent's connection open."""
    while _HELD:
        with contextlib.suppress(OSError):
            os.close(_HELD.pop())
