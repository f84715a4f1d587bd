"""The supervisor of a detached run. `launch -d` and `resume -d` run this file: `python detached.py RUN_DIR`.

The secrets of the command line are not in run.json. They come on stdin, as a Told. The second argument is a
descriptor: there it says that it will now take the run's lock.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import signal
import sys
from pathlib import Path

# A file run by path has its own folder in sys.path: nobody must import the files beside this one. And a user's module
# called `supervisor` in the current folder must not be found in place of ours. (With PYTHONSAFEPATH the entry is not
# there.)
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]
importlib.import_module("_supervise.names").ours_alone()

from supervisor.commands.session import Told, drive
from supervisor.commands.standard import let_the_readers_go
from supervisor.errors import InternalError, Refusal
from supervisor.process.own_session import READY
from supervisor.run import spec as specs
from supervisor.run.folder.lock import RunLock
from supervisor.run.runs import load
from trainer.rundir.files.codec import decode
from trainer.rundir.layout import RunDir


def main(path: Path, ready: int) -> int:
    run = RunDir(path)
    os.write(ready, READY)
    os.close(ready)
    try:
        with RunLock(run, given=True):
            known = load(path)
            if known is None:
                raise Refusal(f"no run in {path}")
            told = decode(sys.stdin.buffer.read(), Told)
            # The ranks get an empty stdin.
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            spec = dataclasses.replace(specs.restore(known.spec), command=told.command, resume_args=told.resume_args)
            return drive(run, spec, quiet=True, located=told.located)
    except (Refusal, InternalError) as ended:
        print(f"supervise: {ended}", file=sys.stderr)
        return ended.exit_code


if __name__ == "__main__":
    # The disk of its log may be full.
    let_the_readers_go()
    # The terminal of the launch may close.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
