"""Disks that do not answer, for a while: for all machines, or for one.

A frozen one takes no write (fsfreeze on a file system of its own, in a file): who writes, creates or removes waits, and
not even a kill ends the wait. One that is not read lets nobody of that machine open or read a file (fanotify). It is
over when the process that asked for it ends, however that ends. It needs root, and a loop device.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_SIZE = 256 << 20
_FREEZE = 'fsfreeze --freeze "$1" && echo blocked; read -r _; fsfreeze --unfreeze "$1"'
_TOOLS = ("mkfs.ext4", "fsfreeze", "mount", "umount")


@functools.cache
def missing() -> str:
    """Why there can be no such disk here; "" if there can."""
    if absent := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"no {', '.join(absent)} here"
    return "" if Path("/dev/loop-control").exists() else "no loop devices here"


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A small disk that can be frozen, mounted in `folder`. Machines that are made later see it."""
    image, path = folder / "disk.image", folder / "disk"
    with image.open("wb") as file:
        file.truncate(_SIZE)
    path.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Nobody can write on the disk at `path`."""
    with _held(["sh", "-c", _FREEZE, "sh", str(path)]):
        yield


@contextlib.contextmanager
def unreadable(path: Path, through: Sequence[str]) -> Iterator[None]:
    """No process that sees the mount of `path` as `through` does (the machine's) can open a file there, or read one."""
    with _held([*through, sys.executable, str(Path(__file__).with_name("unread.py")), str(path)]):
        yield


@contextlib.contextmanager
def _held(command: Sequence[str]) -> Iterator[None]:
    """`command` blocks, until its input ends."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "blocked\n"
        yield
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()
