"""The nursery: one process that has imported everything, stays single-threaded and free of CUDA, and forks worker groups.

Started by the supervisor: `start.py rank.fork_server`. It reads a JSON object a line from stdin and answers each with
one on stdout; when stdin ends, it goes away.

    {"import": [names]}            -> {"ready": true, "failed": [names]} | {"unfit": reason, "module": the one that did it}
    {"gang": folder, "flags": […]} -> {"gang": folder, "pid": launcher}  | {"unfit": reason}

A fork copies one thread. So it forks only while it has one (what OpenBLAS starts steps aside at a fork by itself), and
says that it is unfit otherwise: the supervisor then starts another one without what broke this one.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

from ..rundir.gate import Gate
from . import preload as modules
from . import saves

_REAP_EVERY = 0.2


def unfit() -> str | None:
    """Why this process must not fork worker groups; None if it may."""
    # Gives pools that know about forks (OpenBLAS's) their chance to step aside.
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    threads = _threads()
    if threads > 1:
        return f"{threads} threads run in it"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised in it"
    return None


def _threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _load(names: list[str]) -> dict[str, Any]:
    """All of `names` are imported, up to one that breaks the nursery; that one is named."""
    failed = []
    for name in [*modules.ALWAYS, *names]:
        before = _threads()
        failed += modules.load([name])
        if _threads() > before and (reason := unfit()):
            return {"unfit": reason, "module": name}
    # No collector of a fork needs to look at what all forks have in common.
    gc.freeze()
    return {"unfit": reason} if (reason := unfit()) else {"ready": True, "failed": failed}


def serve() -> None:
    """Answers until stdin ends."""
    # What imports print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    buffered = b""
    while True:
        _reap()
        if not select.select([0], [], [], _REAP_EVERY)[0]:
            continue
        data = os.read(0, 65536)
        if not data:
            return
        *lines, buffered = (buffered + data).split(b"\n")
        for line in lines:
            answers.write(json.dumps(_answer(json.loads(line))) + "\n")


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if "import" in request:
        return _load(request["import"])
    if reason := unfit():
        return {"unfit": reason}
    return {"gang": request["gang"], "pid": _fork_gang(Gate(Path(request["gang"])), request["flags"])}


def _fork_gang(gate: Gate, flags: list[str]) -> int:
    """The pid of a launcher that has its own session and log, and whose ranks will wait at `gate`."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        gate.enter()
        _become(gate.launcher_log)
        from .launcher import finish, launch_forked

        finish(launch_forked(gate, flags))
    finally:
        os._exit(1)


def _become(log: Path) -> None:
    """The child has the standard streams of a launcher, and none of the nursery's."""
    null = os.open(os.devnull, os.O_RDONLY)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.closerange(3, 256)


def main(arguments: list[str]) -> None:
    # The terminal's Ctrl-C is for the supervisor alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Before any module can bind the names that they replace.
    saves.install()
    serve()
