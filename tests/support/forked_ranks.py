"""A process that has imported torch, and forks ranks for tests (two_nodes.py), for as long as its stdin is open.

A line on stdin asks for ranks, a list of {env, command, out}; a line on stdout has their pids, another one how each has
ended, as Popen tells it.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import traceback
from typing import Any, NoReturn

import torch._dynamo
import torch.distributed.fsdp
import torch.nn.parallel  # noqa: F401

_LIMIT_S = 180
"""A rank that waits in vain is killed by SIGALRM after so many seconds."""


def become(rank: dict[str, Any]) -> NoReturn:
    """This process, a fork, is that rank, in a session of its own."""
    code = 1
    try:
        os.setsid()
        signal.alarm(_LIMIT_S)
        out = os.open(rank["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for fd, at in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (out, 2)):
            os.dup2(fd, at)
        os.environ.clear()
        os.environ.update(rank["env"])
        sys.argv[:] = rank["command"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    for line in sys.stdin:
        pids = []
        for rank in json.loads(line):
            if (pid := os.fork()) == 0:
                become(rank)
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), flush=True)


if __name__ == "__main__":
    main()
