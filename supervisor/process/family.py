"""The processes of an attempt, found by walking from parents to children, and the moment when none of them runs code.

The supervisor is a subreaper: an orphan among its descendants becomes its child. So a walk finds them all, and costs
what they are, not what the machine runs. One process may move up while the walk reads (its parent has ended), and be
missed. So a walk counts only if the one before it has found the same.

After a SIGKILL a process is gone only when its memory is: for gigabytes that takes a second. Its tasks run no more code
much earlier: as soon as the kernel has marked them as exiting.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import psutil

from trainer.rundir.machine.proc import content, threads

_LISTENS = b"0A"
"""The state of a listening socket in /proc/net/tcp."""
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def walk(roots: Iterable[int], spared: Collection[int] = ()) -> list[int]:
    """The descendants of `roots`, nearest first, without those in `spared` and their descendants."""
    found: dict[int, None] = {}
    left = list(dict.fromkeys(roots))
    asked = set(left)
    for parent in left:
        for child in _children(parent):
            if child not in spared:
                found[child] = None
                if child not in asked:
                    asked.add(child)
                    left.append(child)
    return list(found)


def our_children() -> Iterator[int]:
    """Our own children. None where the kernel does not tell them at once: this is asked at every look."""
    return _children(os.getpid()) if _CHILDREN_ARE_TOLD else iter(())


def _children(pid: int) -> Iterator[int]:
    if not _CHILDREN_ARE_TOLD:
        with contextlib.suppress(psutil.Error):
            yield from (child.pid for child in psutil.Process(pid).children())
        return
    for thread in threads(pid):
        # The thread, or the process, may have just ended.
        with contextlib.suppress(OSError):
            yield from map(int, _whole(f"/proc/{pid}/task/{thread}/children").split())


_PAGE = 4096
_CHILDREN_ARE_TOLD = Path(f"/proc/self/task/{os.getpid()}/children").exists()
"""Whether the kernel tells the children of a thread (CONFIG_PROC_CHILDREN). Otherwise all processes are read."""


def _whole(path: str) -> bytes:
    """The content of a file in /proc, of any length."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, _PAGE)
        # Only a text that fills a page has more.
        while len(text) > _PAGE // 2 and (more := os.read(fd, _PAGE)):
            text += more
        return text
    finally:
        os.close(fd)


def resident(pid: int) -> int:
    """The bytes that the process has in memory, without what it shares with files and shared memory."""
    try:
        _, total, shared, *_ = content(f"/proc/{pid}/statm").split()
        return (int(total) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def keeps_port(pid: int) -> bool:
    """Whether an exiting process still has a listening socket at a port that was chosen, not drawn. The kernel closes
    sockets after it has freed the memory."""
    first, last = map(int, content(str(_EPHEMERAL)).split())
    ours = {link[8:-1] for link in _links(pid) if link.startswith("socket:[")}
    return bool(ours) and any(
        inode.decode() in ours and not first <= port <= last for inode, port in _listening(pid) if inode
    )


def _links(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                yield str(Path(entry.path).readlink())


def _listening(pid: int) -> Iterator[tuple[bytes, int]]:
    """(inode, port) of the listening sockets in that process' network."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{name}").read_bytes().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS:
                    yield fields[9], int(fields[1].rpartition(b":")[2], 16)
