"""A process with all imports done, of which commands of tests are forks: a launch saves 3 s of a core for torch in its
fork server, and any command 0.2 s for modules of the supervisor.

Run by path, and asked over connections to the socket that is its stdin (launched.py asks). It ends with the process
whose pid it is given, or, without one, with its last connection. A command that it forks has the modules of the
supervisor and no others; its fork server, which it forks where it would start one, has torch, and nothing of the
supervisor's. Both have the arguments, environment, folder, files, session and signals that they would have been started
with. What they train, fork and kill is as real as ever; only `python` has not begun anew. Whoever tests that starts
cold.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TextIO

ROOT = Path(__file__).resolve().parents[2]
ROOM = "ROOM_FOR_ENVIRONMENTS"
"""A variable that this process is started with, so that /proc has room for what a fork's environment is."""
_FORK_SERVER = "rank.engine.fork_server"
_NAMESPACES = ("net", "uts", "ipc", "time", "pid", "mnt")
_Popen = subprocess.Popen
_AS_STARTED = {"env", "cwd", "stdin", "stdout", "stderr", "pass_fds", "start_new_session"}


class Interpreter:
    """What an import leaves in one, to be had again."""

    def __init__(self) -> None:
        self.modules = dict(sys.modules)
        self._lists = [(there, list(there)) for there in (sys.path, sys.meta_path, sys.path_hooks)]

    def restore(self) -> None:
        """But for extensions: those can be loaded once in a process, and do nothing unless they are asked."""
        extensions = {name: module for name, module in sys.modules.items() if not _is_python(module)}
        sys.modules.clear()
        sys.modules.update({**extensions, **self.modules})
        for there, then in self._lists:
            there[:] = then  # type: ignore[index]


def _is_python(module: ModuleType) -> bool:
    return str(getattr(module, "__file__", None)).endswith(".py")


def _load(name: str, folder: Path) -> ModuleType:
    """Our package in `folder`, under its private name."""
    init = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


def _load_supervisor() -> None:
    """As its program begins, and with each module of it that a command may want."""
    _load("_supervise", ROOT / "trainer")
    package = _load("_supervisor", ROOT / "supervisor")
    importlib.import_module("_supervise.names").ours_alone()
    # Imported where the first event is written.
    importlib.import_module("structlog")
    for module in pkgutil.walk_packages(package.__path__, "supervisor."):
        if not module.name.endswith(".__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as missing:
                # Packages of an extra may be missing here.
                if str(missing.name).startswith(("supervisor", "trainer", "_super")):
                    raise


def _load_fork_server(more: list[str]) -> None:
    """As `start.py` starts it, and as it imports torch and the modules that a script is known to import."""
    _load("_supervise", ROOT / "trainer")
    server: Any = importlib.import_module(f"_supervise.{_FORK_SERVER}")
    server.saves.install()
    server.fork_environment.enter()
    server.inherited.imported(server._load_torch)
    server.inherited.imported(lambda: [importlib.import_module(name) for name in more])
    server.fork_environment.leave()


def umask() -> int:
    """That of this process."""
    now = os.umask(0o077)
    os.umask(now)
    return now


def _show(env: dict[str, str], command: Sequence[str]) -> None:
    """This process has `env` and `command`, also in /proc."""
    os.environ.clear()
    os.environ.update(env)
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    first, last, begin, end = (int(field) for field in fields[45:49])
    told = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items())
    assert len(told) <= end - begin, f"an environment of {len(told)} bytes has no room"
    ctypes.memmove(begin, told.ljust(end - begin, b"\0"), end - begin)
    words = b"\0".join(map(os.fsencode, command))[: last - first - 1]
    ctypes.memmove(first, words.ljust(last - first, b"\0"), last - first)


def _default_signals() -> None:
    """As after an exec: what was ignored is ignored."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _end(body: Callable[[], object]) -> NoReturn:
    """This process, a fork, does `body` and ends as an interpreter does."""
    code = 1
    try:
        body()
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


class _ForkServer:
    """What the supervisor gets for the fork server that it starts: a fork, with everything that a Popen is asked
    for."""

    def __init__(self, warm: Interpreter, command: list[str], **asked: Any) -> None:
        assert asked.keys() == _AS_STARTED, f"a fork server is now started with {sorted(asked)}"
        ours, theirs = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _end(lambda: _serve(warm, command, (ours[0], theirs[1], asked["stderr"].fileno()), asked))
        os.close(ours[0])
        os.close(theirs[1])
        self.stdin, self.stdout = open(ours[1], "wb", 0), open(theirs[0], "rb")  # noqa: SIM115, PTH123
        self.returncode: int | None = None


_kept: list[TextIO] = []
"""Streams that would be flushed, under their locks, if they were collected."""


def _anew(old: TextIO, fd: int) -> TextIO:
    """A stream like `old`, with locks of its own."""
    new = open(fd, "w", encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
    new.reconfigure(line_buffering=old.line_buffering, write_through=old.write_through)  # type: ignore[attr-defined]
    return new


def _serve(warm: Interpreter, command: list[str], streams: tuple[int, int, int], asked: dict[str, Any]) -> None:
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    if asked["start_new_session"]:
        os.setsid()
    os.chdir(asked["cwd"])
    # A thread of the supervisor may have held the locks of its streams at the fork, and is not here to let them go.
    _kept.extend([sys.stdout, sys.stderr])
    sys.stdout, sys.stderr = _anew(sys.stdout, 1), _anew(sys.stderr, 2)
    warm.restore()
    _close_others(warm, *asked["pass_fds"])
    _default_signals()
    _show(asked["env"], command)
    if threads := asked["env"].get("OMP_NUM_THREADS"):
        # Read when it was imported. Fewer than there are cores: more would be threads at once.
        sys.modules["torch"].set_num_threads(int(threads))
    _, _, script, _, *arguments = sys.orig_argv[:] = command
    sys.argv[:] = [script, _FORK_SERVER, *arguments]
    sys.modules["__main__"] = ModuleType("__main__")
    sys.exit(sys.modules[f"_supervise.{_FORK_SERVER}"].main(arguments))


class _Launch:
    """What `chaos` gets for a launch that it starts: a fork, too."""

    def __init__(self, cold: Interpreter, warm: Interpreter, command: list[str], **asked: Any) -> None:
        wanted = {"command": command[1:], "env": asked["env"], "cwd": str(Path.cwd()), "umask": umask()}
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(asked["stdout"].fileno(), 1)
            os.dup2(asked["stderr"].fileno(), 2)
            os.setsid()
            _close_others(warm)
            _default_signals()
            _end(lambda: _command(cold, warm, wanted, []))
        self._ended = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("launch", timeout or 0.0)
        return code

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], seconds)[0]:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def _close_others(warm: Interpreter, *kept: int) -> None:
    """As an exec does, but for what imported modules have open."""
    inherited = warm.modules["_supervise.rank.process.inherited"]
    inherited.descriptors.close_all_but({*inherited._of_modules, *kept}, pipes=False)


def _command(cold: Interpreter, warm: Interpreter, asked: dict[str, Any], fds: list[int]) -> None:
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    os.chdir(asked["cwd"])
    os.umask(asked["umask"])
    cold.restore()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _show(asked["env"], [sys.executable, *asked["command"]])
    sys.orig_argv[:] = [sys.executable, *asked["command"]]

    class Popen(_Popen):  # type: ignore[type-arg]
        def __new__(cls, command: list[str], **options: Any) -> Any:
            if _FORK_SERVER in command:
                return _ForkServer(warm, command, **options)
            if command[1:2] == ["-c"] and "supervisor" in command[2]:
                return _Launch(cold, warm, command, **options)
            return super().__new__(cls)

    subprocess.Popen = Popen  # type: ignore[misc]
    if asked["command"][0] == "-c":
        sys.argv[:] = ["-c", *asked["command"][2:]]
        sys.path.insert(0, "")
        exec(asked["command"][1], {"__name__": "__main__"})
    else:
        sys.argv[:] = asked["command"]
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")


def _on_machine(pid: int, body: Callable[[], object]) -> None:
    """A child does `body` on the machine (machines.py) whose first process is `pid`; this process ends as it does."""
    folder = Path.cwd()
    there = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in _NAMESPACES]
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, fd in zip(_NAMESPACES, there, strict=True):
        if libc.setns(fd, 0):
            raise OSError(ctypes.get_errno(), f"cannot enter the {kind} namespace of {pid}")
        os.close(fd)
    os.chdir(folder)
    child = os.fork()
    if child == 0:
        _end(body)
    sys.exit(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))


class _Forker:
    """Forks what its clients ask for, and tells each how what it asked for has ended."""

    def __init__(self, cold: Interpreter, warm: Interpreter, listener: socket.socket, owner: int = 0) -> None:
        """`owner`: the pid with which it ends; 0: it ends with its last client."""
        self._cold, self._warm, self._listener = cold, warm, listener
        self._owner = [os.pidfd_open(owner)] if owner else []
        self._clients = [] if owner else [listener.accept()[0]]
        self._running: dict[int, tuple[int, int]] = {}
        """By pidfd: the pid, and where to tell its end."""

    def serve(self) -> None:
        while self._owner or self._clients:
            for one in select.select([self._listener, *self._owner, *self._clients, *self._running], [], [])[0]:
                if one in self._owner:
                    return
                if one is self._listener:
                    self._clients.append(self._listener.accept()[0])
                elif one in self._clients:
                    self._hear(one)
                else:
                    self._tell(one)

    def _hear(self, client: socket.socket) -> None:
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data, fds, _, _ = socket.recv_fds(client, 1 << 20, 4)
        if not data:
            self._clients.remove(client)
            client.close()
            return
        pid = os.fork()
        if pid == 0:
            self._close()
            _end(lambda: self._become(json.loads(data), fds))
        self._running[os.pidfd_open(pid)] = pid, fds.pop()
        for fd in fds:
            os.close(fd)
        # A test process that was killed meanwhile is no reason to end for the others.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.send(str(pid).encode())

    def _become(self, asked: dict[str, Any], fds: list[int]) -> None:
        if "command" in asked:
            _command(self._cold, self._warm, asked, fds)
        else:
            os.close(fds[1])
            listener = socket.socket(fileno=fds[0])
            _on_machine(asked["machine"], lambda: _Forker(self._cold, self._warm, listener).serve())

    def _tell(self, ended: int) -> None:
        pid, told = self._running.pop(ended)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        # Who asked for it may be gone.
        with contextlib.suppress(BrokenPipeError):
            os.write(told, str(status).encode())
        os.close(ended)
        os.close(told)

    def _close(self) -> None:
        """In a fork: nothing of this is open."""
        for one in (self._listener, *self._clients):
            one.close()
        for number in (*self._owner, *self._running, *(told for _, told in self._running.values())):
            os.close(number)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    del sys.path[0], os.environ[ROOM]
    gc.disable()
    bare = Interpreter()
    _load_supervisor()
    cold = Interpreter()
    bare.restore()
    _load_fork_server(json.loads(sys.argv[1]))
    # The collectors of the forks need not look at what all share: each look took 0.1 s, and a copy of its pages.
    gc.enable()
    gc.collect()
    gc.freeze()
    _Forker(cold, Interpreter(), socket.socket(fileno=os.dup(0)), int(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
