"""The fork server: one process that has imported everything and forks worker groups. It has one thread and no CUDA.

The supervisor starts it: `start.py rank.engine.fork_server STDIN SCRIPT ARGUMENTS…`. It reads one JSON object a line
from stdin and answers each with one on stdout. When stdin ends, it ends. STDIN is the descriptor that its forks get as
stdin (none: they can read nothing). SCRIPT and ARGUMENTS are for `ps`, and give room for the forks' command lines.

    {"import": file, "gently": bool} -> {"ready": true, "pid": who serves, "found": file} | {"unfit": reason}
    {"group": folder, "flags": […]}   -> {"group": folder, "pid": launcher, or 0: it cannot} | {"unfit": reason}
    {"run": program, "arguments": […], "out": file, "mark": text} -> {"ran": file, "pid": pid, or 0: it cannot}
    {"stay": {…}}                     -> {"stays": pid, "why": reason}: a fork stays for the next run, see kept.py

Both files are a learned.Wanted; the second one names the modules that cannot be imported. A fork copies one thread, so
the server forks only while it has one (OpenBLAS ends its threads at a fork by itself). Imports are tried in a fork
first, see trial.py. That fork serves from then on, and the first process waits for it. Until then the first process
forks the groups.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from ...rundir.files.codec import read
from ...rundir.records.gate import Gate
from ...rundir.records.kept import Stay
from ...rundir.records.learned import Wanted
from ...rundir.variables import MARK
from .. import torch_patches
from ..journal import saves
from ..preload import modules, own_modules, trial
from ..preload.fitness import threads, unfit
from ..preload.variables import is_read
from ..process import fork_environment, inherited, mark
from . import kept

_REAP_EVERY = 0.2
_OURS = __name__.rpartition(".engine.")[0]


class _Server:
    """One of the processes that serve in turn. They share stdin and stdout, and one of them reads each request."""

    def __init__(self, stdin: int | None, began: kept.Began) -> None:
        # Text that an import prints must not be taken for an answer. A line is one write(), because others write too.
        self._answers = os.dup(1)
        os.dup2(2, 1)
        # Imports must not read the requests either, nor the script's input.
        self.requests = os.dup(0)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._stdin = null if stdin is None else stdin
        os.set_inheritable(self._stdin, False)
        os.dup2(null, 0)
        self._buffered = b""
        self._began = began
        self._importing = False
        self._reads: dict[str, set[str]] = {}
        """For each module that it has imported: the variables that the import has read."""

    def hear(self) -> bool:
        """All requests so far are answered. False if no more requests can come."""
        data = os.read(self.requests, 65536)
        *lines, self._buffered = (self._buffered + data).split(b"\n")
        for line in lines:
            if (answer := self._answer(json.loads(line))) is not None:
                os.write(self._answers, json.dumps(answer).encode() + b"\n")
        return bool(data)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        if "stay" in request:
            return self._stay(Stay(**request["stay"]))
        if "import" in request:
            return self._load(Path(request["import"]), bool(request.get("gently")))
        if "run" in request:
            fits = threads() == 1 and len(request["mark"]) == mark.room()
            return {"ran": request["out"], "pid": _fork_program(request) if fits else 0}
        try:
            if reason := unfit():
                return {"unfit": reason}
            pid = _fork_group(Gate(Path(request["group"])), request["flags"], self._stdin)
        except OSError as error:
            # There may be no more processes now (ulimit -u), or no memory. What it has imported is as good as before.
            print(f"no group: {error}", flush=True)
            pid = 0
        return {"group": request["group"], "pid": pid}

    def _stay(self, order: Stay) -> dict[str, Any] | None:
        """None in the fork that has stayed and serves another run now."""
        if why := "it is importing" if self._importing else unfit():
            return {"stays": 0, "why": why}
        answer, files = kept.stay(order, self._began)
        if not files:
            return {"stays": answer.pid, "why": answer.why}
        self._stdin, self.requests, self._answers, log = files
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        return None

    def _load(self, path: Path, gently: bool) -> dict[str, Any]:
        """Imports the modules that `path` lists, except harmful ones, which it names. The answer comes from the process
        that serves from now on."""
        inherited.imported(_load_torch)
        if reason := unfit():
            return {"unfit": reason}
        found = path.with_suffix(".found.json")
        try:
            wanted, self._importing = read(path, Wanted), True
            if too_late := self._too_late(wanted):
                return {"unfit": too_late}
            grow = partial(trial.grow, wanted, self._reads, gently, self.requests, self.hear)
            inherited.imported(grow).write(found)
        except (OSError, ValueError) as error:
            return {"unfit": f"its list of modules cannot be read, or its findings cannot be written: {error}"}
        finally:
            self._importing = False
        # The garbage collectors of the forks need not look at objects that all forks share.
        gc.freeze()
        return {"ready": True, "found": str(found), "pid": os.getpid()}

    def _too_late(self, wanted: Wanted) -> str:
        """Why what this process has imported is not what the script imports. Empty if it is."""
        if others := own_modules.loaded(wanted.mine):
            return f"it has imported {others[0]}, and the script has its own"
        for variable, names in wanted.late.items():
            for name in names:
                if is_read(variable, name, self._reads.get(name, ())):
                    return f"it has imported {name}, which reads {variable}; the script sets that before"
        return ""


def serve(stdin: int | None, began: kept.Began) -> None:
    """Answers until there are no more requests."""
    server = _Server(stdin, began)
    while True:
        _reap()
        if select.select([server.requests], [], [], _REAP_EVERY)[0] and not server.hear():
            return


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _load_torch() -> None:
    modules.load(["torch"])
    torch_patches.count_gpus_apart()
    before = set(os.environ)
    modules.load(modules.ALWAYS)
    # torch sets it again when it needs it, unless the script has set it by then.
    for name in os.environ.keys() - before:
        del os.environ[name]
    # What each group begins with: in every fork it would take 50 ms. Without a torch the group tells what is wrong.
    modules.load([_OURS + ".worker", _OURS + ".engine.forked"])


def _fork_group(gate: Gate, flags: list[str], stdin: int) -> int:
    """The pid of a new launcher. It has its own session and log, and its ranks will wait at `gate`."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        gate.enter()
        _become(gate.launcher_log, stdin)
        from .launcher import finish, launch_forked

        finish(launch_forked(gate, flags))
    finally:
        os._exit(1)


def _fork_program(request: dict[str, Any]) -> int:
    """The pid of a fork that runs one of our programs, in a session of its own. All that it prints goes to the file. 0
    if there can be none now."""
    # Imported here, once: it is one of ours, and harms no fork.
    module = importlib.import_module(f"...{request['run']}", __package__)
    try:
        pid = os.fork()
    except OSError:
        return 0
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        mark.show(request["mark"])
        os.environ[MARK] = request["mark"]
        _become(Path(request["out"]), os.open(os.devnull, os.O_RDONLY))
        code = module.main(request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _become(log: Path, stdin: int) -> None:
    """The child has the standard streams of a launcher, and none of the fork server's other files."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(stdin, 0)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    inherited.leave()


def main(arguments: list[str]) -> None:
    began = kept.Began()
    # The terminal's Ctrl-C is for the supervisor alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # This comes before any module can bind the names that the patches replace.
    saves.install()
    fork_environment.enter()
    serve(int(arguments[0]) if arguments else None, began)
