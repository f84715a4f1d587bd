"""The supervisor of a node that follows, in the background. `launch -d` starts this file there: `python far.py FD`.

What the launch was given comes on stdin. At the descriptor it says that a leader has admitted this node.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A file run by path has its own folder in sys.path, as detached.py explains.
if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    importlib.import_module("_supervise.names").ours_alone()

from supervisor.commands import several
from supervisor.commands.nodes import Located
from supervisor.commands.standard import let_the_readers_go
from supervisor.errors import InternalError, Refusal
from supervisor.process.own_session import READY, start_in_own_session
from supervisor.reading.plain import plain
from trainer.rundir.files.codec import decode, encode
from trainer.rundir.layout import RunDir

_GIVEN = ("run_dir", "node_wait", "command_line", "module", "nproc", "local_dir")
"""The options that a node that follows needs. The others are the leader's."""
_SLACK = 10.0
"""Seconds that its start may take beside the wait for a leader."""


def detached_follow(located: Located, given: Mapping[str, Any], quiet: bool) -> int:
    """A supervisor follows in its own session, and a leader has admitted it. It does not depend on this terminal.
    Refusal if it has ended instead, with what it said."""
    run, wait = RunDir(Path(given["run_dir"]).resolve()), float(given["node_wait"])
    # Then there is a folder, and in it a place for the log.
    several.wait_for_token(run, wait)
    path = several.log_of(run, located)
    options = {name: given[name] for name in _GIVEN} | {"run_dir": str(run.path)}
    with path.open("ab") as log:
        began = log.tell()
        child, ready = start_in_own_session(
            Path(__file__).resolve(), (), encode([located, options]), log, wait + _SLACK
        )
    if not ready:
        raise _failed(path, began, None if _lives(child) else child.returncode)
    child.returncode = 0
    if not quiet:
        print(plain(f"supervise: this node follows {run.path} in the background; its log: {path}"), file=sys.stderr)
    return 0


def _lives(child: subprocess.Popen[bytes]) -> bool:
    """Whether it runs still, a moment after it closed its end of the pipe."""
    try:
        child.wait(1.0)
    except subprocess.TimeoutExpired:
        return True
    return False


def _failed(path: Path, began: int, ended: int | None) -> Refusal:
    """Why it does not follow: its last words, or that it has none."""
    if ended is None:
        return Refusal(f"no leader has admitted this node yet; it goes on trying, see {path}")
    with path.open("rb") as log:
        log.seek(began)
        lines = log.read().decode(errors="replace").strip().splitlines()
    said = next((line for line in reversed(lines) if line.startswith("supervise: ")), "")
    return Refusal(said.removeprefix("supervise: ") or f"the supervisor did not start (exit code {ended}); see {path}")


def main(ready: int) -> int:
    located, given = decode(sys.stdin.buffer.read(), tuple[Located, dict[str, Any]])
    # The ranks get an empty stdin.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    told = False

    def say(text: str) -> None:
        nonlocal told
        print(plain(f"supervise: {text}"), file=sys.stderr, flush=True)
        if not told:
            told = True
            os.write(ready, READY)
            os.close(ready)

    try:
        return several.follow(located, given, quiet=False, say=say)
    except (Refusal, InternalError) as ended:
        print(f"supervise: {ended}", file=sys.stderr)
        return ended.exit_code


if __name__ == "__main__":
    # The disk of its log may be full.
    let_the_readers_go()
    # The terminal of the launch may close.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(main(int(sys.argv[1])))
