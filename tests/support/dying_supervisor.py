"""A supervisor that kills itself at a named moment: `python PATH ARGUMENTS of supervise`.

The moment is in the file `moment` of the current folder, which a test may write at any time: `before event:verdict`,
`after supervisor.group.group:WorkerGroup.release`. It is struck with SIGKILL, so nothing is tidied up; the file is gone
by then.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOMENT = Path("moment").absolute()
POINTS = (
    "supervisor.attempt.attempt:create_beats",
    "supervisor.attempt.attempt:Attempt.send",
    "supervisor.group.group:WorkerGroup.release",
    "supervisor.loop.flush:Flusher._start",
    "supervisor.loop.flush:Flusher.finish",
)


def _pass(when: str, point: str) -> None:
    try:
        due = MOMENT.read_text() == f"{when} {point}"
    except FileNotFoundError:
        return
    if due:
        MOMENT.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def _mortal(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **more: Any) -> Any:
        point = name(*arguments)
        _pass("before", point)
        result = function(*arguments, **more)
        _pass("after", point)
        return result

    return wrapped


def _wrap(where: str, name: Callable[..., str]) -> None:
    module, _, path = where.partition(":")
    *outer, attribute = path.split(".")
    holder = functools.reduce(getattr, outer, importlib.import_module(module))
    setattr(holder, attribute, _mortal(getattr(holder, attribute), name))


if __name__ == "__main__":
    importlib.import_module("_supervise.names").ours_alone()
    from supervisor.commands.cli import run

    for point in POINTS:
        _wrap(point, lambda *_, point=point: point)  # type: ignore[misc]
    _wrap("supervisor.run.events:EventLog.emit", lambda _log, event, *_: f"event:{event}")
    sys.exit(run(sys.argv[1:]))
