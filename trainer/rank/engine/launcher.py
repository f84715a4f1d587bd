"""torchrun as the engine of one attempt: it spawns the ranks and does the rendezvous. A report tells what failed.

Started alone, by `start.py rank.engine.launcher GROUP torchrun-flags… -- SCRIPT ARGUMENTS…`, it spawns ranks that run
rank.worker. Forked from the fork server, it forks its ranks. torchrun's own exit status is 1 for every failure, and it
shows the status of each rank only in a printed box. The report in the group's folder has the status as JSON. A
supervisor that is not the launcher's parent, and cannot wait for it, can read it too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ...rundir.programs import program
from ...rundir.records.gate import Failure, Gate
from ...rundir.variables import GRACE, GROUP
from .. import torch_patches
from ..preload import modules
from ..process.children import exit_code, send

_WORKER = program("rank.worker")
_LOOK_EVERY = 5.0
"""Seconds between two looks of the engine at ranks without news. By default it looks every 0.1 s, which takes 0.6 % of
a core from training, and as much again in the waiting group."""
_UNREAPED = 0.05
Poll = Callable[[Any], Any]
Exits = dict[int, Failure]
"""For each rank that has ended, how. Exits with 0 are in it too."""


def launch(gate: Gate, flags: list[str], shown: list[str]) -> int:
    """Exit status 0 if every rank exited with 0, else 1. Each rank is a fresh interpreter, with room for `shown`."""
    modules.load(["torch"])
    from torch.distributed import run

    from . import rendezvous

    os.environ[GROUP] = str(gate.path)
    rendezvous.register()
    return _reported(gate, lambda: run.run(run.parse_args([*flags, *_WORKER, *shown])))  # type: ignore[no-untyped-call]


def launch_forked(gate: Gate, flags: list[str]) -> int:
    """Like launch(), with ranks that are forks of this process and import nothing."""
    from torch.distributed import run
    from torch.distributed.launcher.api import elastic_launch

    from ..worker import forked_rank
    from . import rendezvous
    from .forked import ForkedRanks

    os.environ[GROUP] = str(gate.path)
    rendezvous.register(forks=True)
    torch_patches.replace_forks(ForkedRanks)
    config, _, _ = run.config_from_args(run.parse_args([*flags, *_WORKER]))  # type: ignore[no-untyped-call]
    config.start_method = "fork"
    return _reported(gate, lambda: elastic_launch(config, forked_rank)())


def _graceful(gate: Gate, grace: float, exits: Exits) -> Callable[[Any, Poll], Any]:
    """A replacement for the engine's poll of its ranks.

    When one rank exits with another status than 0, torchrun ends the others: a TERM, and 30 s later a KILL.

    Here the supervisor decides that: a rank that was asked to stop may need the whole grace for its save. So the engine
    does not learn of an exit for `grace` seconds. If the supervisor is gone too, the engine then acts as always. A
    group that still waits is useless without a rank, and is killed: it has nothing to save, and a program may take the
    TERM for a wish. `exits` says for each rank when and how it ended; the engine names only one rank, and not always
    the first.
    """
    heard = float("inf")

    def patient(self: Any, poll: Poll) -> Any:
        nonlocal heard
        pids = {int(self.envs[local]["RANK"]): pid for local, pid in self.pids().items()}
        _await_news([pid for rank, pid in pids.items() if rank not in exits], _LOOK_EVERY)
        for rank, pid in pids.items():
            if rank not in exits and (code := exit_code(pid)) is not None:
                _note(exits, rank, pid, code)
        left = [pid for rank, pid in pids.items() if rank not in exits]
        if exits and left and not gate.release.exists():
            for pid in left:
                send(pid, signal.SIGKILL)
        elif exits and left:
            if not any(body.exit_code for body in exits.values()):
                # The engine would reap a rank that exits with 0, and nobody could see its status any more.
                return None
            heard = min(heard, time.monotonic())
            if time.monotonic() < heard + grace:
                return None
        return poll(self)

    return patient


def _await_news(pids: list[int], seconds: float) -> None:
    """Waits until one of the processes has ended, or `seconds` have passed."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        poll = select.poll()
        for pid in pids:
            fd = os.pidfd_open(pid)
            stack.callback(os.close, fd)
            poll.register(fd, select.POLLIN)
        if poll.poll(seconds * 1000):
            # The supervisor can see the exit status until the engine waits for the process.
            time.sleep(_UNREAPED)


def _note(exits: Exits, rank: int, pid: int, code: int) -> None:
    exits.setdefault(rank, Failure(rank, pid, code, time.monotonic()))


def _reported(gate: Gate, engine: Callable[[], object]) -> int:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    code = 0
    exits: Exits = {}
    torch_patches.name_the_host_quickly()
    torch_patches.replace_poll(_graceful(gate, float(os.environ[GRACE]), exits))
    try:
        engine()
    except ChildFailedError as error:
        code = 1
        for rank, failure in error.failures.items():
            _note(exits, rank, failure.pid, failure.exitcode)
    except BaseException:
        code = 1
        traceback.print_exc()
    gate.report(code, [body for body in exits.values() if body.exit_code])
    return code


def finish(code: int) -> NoReturn:
    """Ends this process at once. All ranks are gone, and the end of torch's modules would take another 0.1 s."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: list[str]) -> NoReturn:
    group = Gate(Path(arguments[0]))
    group.enter()
    end = arguments.index("--")
    finish(launch(group, arguments[1:end], arguments[end + 1 :]))
