"""The bootstrap that runs any script in a rank: it registers the pid, beats, and records what ended the script.

Run as a file by the launcher: `python worker.py [-m] SCRIPT arguments…`. The script runs as its own `__main__`, with its
own argv and sys.path; it needs to know nothing of us. Without a supervisor it only runs the script.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
sys.path[0] = str(_PACKAGE.parent)

from trainer import progress as _progress
from trainer.hooks import watch_torch
from trainer.reporter import Reporter, record_exception
from trainer.rundir.environment import supervised


def _redirect(log: Path) -> None:
    """What this rank and its children print goes to `log`, appended line by line."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _hide(script_folder: str) -> None:
    """`import trainer` in the script finds the user's own module of that name, if there is one beside the script."""
    here = Path(script_folder)
    theirs = here / "trainer.py", here / "trainer" / "__init__.py"
    if _PACKAGE.parent.resolve() == here.resolve() or not any(path.exists() for path in theirs):
        return
    for name in [n for n in sys.modules if n == "trainer" or n.startswith("trainer.")]:
        del sys.modules[name]


def run(arguments: list[str]) -> None:
    """The script has run to its end; its exceptions pass through."""
    module = arguments[0] == "-m"
    target, *rest = arguments[1:] if module else arguments
    # As the interpreter does it: the script's folder is searched first, or the current one for -m.
    folder = str(Path.cwd()) if module else str(Path(target).resolve().parent)
    sys.path[0] = folder
    sys.argv = [target, *rest]
    if module:
        if str(_PACKAGE.parent) not in sys.path:
            sys.path.append(str(_PACKAGE.parent))
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        _hide(folder)
        runpy.run_path(target, run_name="__main__")


def main() -> None:
    place = supervised()
    if place is not None and "RANK" in os.environ:
        rank = int(os.environ["RANK"])
        _redirect(place.attempt.rank_log(rank))
        reporter = Reporter(place, rank)
        _progress.install(reporter)
        watch_torch(reporter)
        with record_exception(reporter):
            run(sys.argv[1:])
        return
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
