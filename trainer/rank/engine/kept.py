"""A fork server that stays after its run's end, for the user's next run of the same script (--keep-warm).

    the run ends ──stay──> a fork of the server waits at a socket ──take──> it serves the next run
                              │ its time is over, told to leave, a loaded file has changed, its socket is gone
                              └─ it ends, and its socket is removed

It has no file of the run, and not its mark. It is taken only by its own user, and only by one who would start it in the
same environment, with the same limits, groups and namespaces, and from the same files. Otherwise the run starts cold.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ...rundir.machine.inheritance import inherited as inheritance
from ...rundir.records import kept
from ...rundir.records.kept import Answer, Ask, Stay
from ...rundir.variables import MARK
from ..process import inherited, mark

FILES = 4
"""The descriptors of who takes it: the script's stdin, the requests, the answers, the log."""
_FOLDER = Path("/proc/self/cwd")
"""Where this process is; of a folder that was removed it is no path any more."""
_LOOK_EVERY = 20.0
"""Seconds between two looks whether the socket is still there."""
_MAPPED = re.compile(r"^\S+ (\S+) \S+ \S+ \S+ +(/.*)$", re.MULTILINE)
_NOT_FILES = ("/dev/", "/memfd:", "/SYSV", "/proc/")
Stamp = tuple[int, ...]


@dataclass
class Began:
    """What this process was started with."""

    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    inherited: dict[str, str] = field(default_factory=inheritance)
    at: float = field(default_factory=time.time)


def stay(order: Stay, began: Began) -> tuple[Answer, list[int]]:
    """In this process: who stays, or why nobody does. A fork of it waits at the socket. In that fork it returns the
    files of who has taken it, or does not return."""
    files = _loaded()
    if (changed := _newer(files, began.at)) is not None:
        return Answer(0, f"{changed} has changed since it was loaded"), []
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            taken = _wait(order, began, files, write)
        except BaseException:
            os._exit(1)
        if not taken:
            os._exit(0)
        return Answer(os.getpid()), taken
    os.close(write)
    with os.fdopen(read, "rb") as told:
        why = told.read().decode(errors="replace")
    if why:
        os.waitpid(pid, 0)
    return Answer(0 if why else pid, why), []


def _wait(order: Stay, began: Began, files: dict[str, Stamp], told: int) -> list[int]:
    """The files of who has taken this fork; none if it is to end. `told` gets the reason why it cannot wait."""
    until, path = kept.now() + order.seconds, Path(order.path)
    try:
        _settle(told)
        listener, inode = _listening(path)
    except OSError as error:
        os.write(told, str(error).encode())
        raise
    os.close(told)
    with listener:
        taken = _taken(listener, path, inode, order, until, began, files)
    if not taken:
        _remove(path, inode)
    return taken


def _settle(told: int) -> None:
    """This fork has its own session, no file of the run, and not its mark."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    inherited.leave(but={told})
    mark.show("kept")


def _listening(path: Path) -> tuple[socket.socket, int]:
    """A socket at `path`, and the number of its file. The process behind one that is there was told to leave."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with kept.beside(path) as short, kept.beside(path.with_name(f"{path.name}.{os.getpid()}")) as new:
        before = os.umask(0o177)
        try:
            listener.bind(new)
        finally:
            os.umask(before)
        listener.listen()
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as old:
            old.settimeout(kept.TIME_LIMIT)
            old.connect(short)
            if kept.is_own(old):
                kept.send(old, Ask("leave"))
                kept.receive(old, Answer)
        Path(new).rename(short)
    return listener, path.stat().st_ino


def _taken(
    listener: socket.socket, path: Path, inode: int, order: Stay, until: float, began: Began, files: dict[str, Stamp]
) -> list[int]:
    """The files of who has taken this process; none if it is to end."""
    while (left := until - kept.now()) > 0 and _is_at(path, inode):
        if not select.select([listener], [], [], min(left, _LOOK_EVERY))[0]:
            continue
        with contextlib.suppress(OSError, ValueError), listener.accept()[0] as peer:
            peer.settimeout(kept.TIME_LIMIT)
            if not kept.is_own(peer):
                continue
            ask, fds = kept.receive(peer, Ask)
            answer = Answer(os.getpid(), "", order.script, str(_FOLDER.readlink()), until - kept.now())
            if ask.ask == "take":
                answer.why = _refused(ask, fds, began, files)
                if not answer.why:
                    # Whoever comes now finds nobody.
                    _remove(path, inode)
                    _serve(ask, began)
                    kept.send(peer, answer)
                    return fds
            for fd in fds:
                os.close(fd)
            if leaves := ask.ask == "leave" or _changed(files) is not None:
                _remove(path, inode)
            kept.send(peer, answer)
            if leaves:
                return []
    return []


def _refused(ask: Ask, fds: list[int], began: Began, files: dict[str, Stamp]) -> str:
    """Why it cannot serve the one who asks; empty if it can."""
    if len(fds) != FILES:
        return "it was asked without files"
    if name := kept.differs(began.environ, ask.environ):
        return f"{name} is different in the environment"
    if name := kept.differs(began.inherited, ask.inherited):
        return f"it was started with another {name}"
    if (changed := _changed(files)) is not None:
        return f"{changed} has changed"
    return "" if len(ask.environ.get(MARK, "")) == mark.room() else "it has no room for the mark"


def _serve(ask: Ask, began: Began) -> None:
    """This process is one of the run that has taken it: by its environment and its mark."""
    for name in {*began.environ, *ask.environ}:
        if began.environ.get(name) == (value := ask.environ.get(name)):
            continue
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    began.environ = ask.environ
    mark.show(ask.environ[MARK])


def _is_at(path: Path, inode: int) -> bool:
    try:
        return path.stat().st_ino == inode
    except OSError:
        return False


def _remove(path: Path, inode: int) -> None:
    if _is_at(path, inode):
        path.unlink(missing_ok=True)


# ── the files that this process was made of ─────────────────────────────────────────────────────────────────────────


def _loaded() -> dict[str, Stamp]:
    """The stamps of the loaded modules' files, of everything mapped, and of the folders and files that decide what is
    installed."""
    paths = {str(path) for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None))}
    for rights, path in _MAPPED.findall(Path("/proc/self/maps").read_text(errors="surrogateescape")):
        if "x" in rights and not path.startswith(_NOT_FILES):
            paths.add(path)
    paths |= {str(path) for path in [Path(sys.prefix, "pyvenv.cfg")] if path.exists()}
    for folder in filter(None, sys.path):
        if folder.endswith("-packages"):
            paths |= {folder, *(str(path) for path in Path(folder).glob("*.pth"))}
    return {path: _stamp(path) for path in paths if path.startswith("/")}


def _stamp(path: str) -> Stamp:
    """Empty if there is no such file. The time of the change cannot be set by the user, that of the content can."""
    try:
        found = os.stat(path)  # noqa: PTH116 (of thousands of files, while somebody waits)
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _newer(files: dict[str, Stamp], since: float) -> str | None:
    """A file that has changed since then, or is gone."""
    return next((path for path, stamp in files.items() if not stamp or stamp[-1] >= since * 1e9), None)


def _changed(files: dict[str, Stamp]) -> str | None:
    """A file that has changed."""
    return next((path for path, stamp in files.items() if _stamp(path) != stamp), None)
