"""torchrun as an engine for one attempt: it spawns the ranks and does the rendezvous; what failed goes to a report.

Started by itself, `start.py rank.engine.launcher GROUP torchrun-flags… -- SCRIPT ARGUMENTS…`, its ranks are processes
of their own that run rank.worker; forked from the fork server, its ranks are forks. torchrun's own exit status is 1 for
every failure, and the status of each rank is only in the box that it prints; the report in the group's folder has it as
JSON, also for a supervisor that is not the launcher's parent and cannot wait for it.
"""

from __future__ import annotations

import contextlib
import os
import select
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
from ..process.children import exit_code

_WORKER = program("rank.worker")
_LOOK_EVERY = 5.0
"""Seconds between two looks of the engine at ranks of which there is no news. It would look every 0.1 s, which takes 0.6 %
of a core from those who train, and as much again in the group that waits."""
_UNREAPED = 0.05
Poll = Callable[[Any], Any]
Exits = dict[int, Failure]
"""By rank, who has ended, with 0 too."""


def launch(gate: Gate, flags: list[str], shown: list[str]) -> int:
    """Exit status 0 when every rank exited with 0, otherwise 1; each rank a fresh interpreter, with room for
    `shown`."""
    from torch.distributed import run

    from . import rendezvous

    os.environ[GROUP] = str(gate.path)
    rendezvous.register()
    return _reported(gate, lambda: run.run(run.parse_args([*flags, *_WORKER, *shown])))  # type: ignore[no-untyped-call]


def launch_forked(gate: Gate, flags: list[str]) -> int:
    """The same with ranks that are forks of this process and need to import nothing."""
    from torch.distributed import run
    from torch.distributed.launcher.api import elastic_launch

    from ..worker import forked_rank
    from . import rendezvous
    from .forked import ForkedRanks

    os.environ[GROUP] = str(gate.path)
    rendezvous.register()
    torch_patches.replace_forks(ForkedRanks)
    config, _, _ = run.config_from_args(run.parse_args([*flags, *_WORKER]))  # type: ignore[no-untyped-call]
    config.start_method = "fork"
    return _reported(gate, lambda: elastic_launch(config, forked_rank)())


def _graceful(gate: Gate, grace: float, exits: Exits) -> Callable[[Any, Poll], Any]:
    """How the engine is to poll its ranks.

    torchrun ends the other ranks as soon as one has exited otherwise than with 0: with a TERM, and 30 s later a KILL.

    That is the supervisor's to decide: a rank that was asked to stop may need the whole grace for its save. So for `grace`
    seconds the engine does not hear of an exit; if the supervisor is gone, too, it then does what it always does. A
    group that still waits at its gate is of no use with a rank missing, and goes at once. Who has exited, when and how,
    is in `exits` by rank: the engine names one of them alone, and not always the first.
    """
    heard = float("inf")

    def patient(self: Any, poll: Poll) -> Any:
        nonlocal heard
        pids = {int(self.envs[local]["RANK"]): pid for local, pid in self.pids().items()}
        _await_news([pid for rank, pid in pids.items() if rank not in exits], _LOOK_EVERY)
        for rank, pid in pids.items():
            if rank not in exits and (code := exit_code(pid)) is not None:
                _note(exits, rank, pid, code)
        if 0 < len(exits) < len(pids) and gate.release.exists():
            if not any(body.exit_code for body in exits.values()):
                # The engine would reap who has left with 0, and nobody could see it any more.
                return None
            heard = min(heard, time.monotonic())
            if time.monotonic() < heard + grace:
                return None
        return poll(self)

    return patient


def _await_news(pids: list[int], seconds: float) -> None:
    """One of these has ended, or `seconds` have passed."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        poll = select.poll()
        for pid in pids:
            fd = os.pidfd_open(pid)
            stack.callback(os.close, fd)
            poll.register(fd, select.POLLIN)
        if poll.poll(seconds * 1000):
            # Its exit status is there for the supervisor to see until the engine waits for it.
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
    """The process is gone, at once: every rank is, and tearing down torch's modules would take another 0.1 s."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: list[str]) -> NoReturn:
    group = Gate(Path(arguments[0]))
    group.enter()
    end = arguments.index("--")
    finish(launch(group, arguments[1:end], arguments[end + 1 :]))
