"""A training run killed over and over: `python -m tests.support.killed_trainer KILLS SEED FLAGS…`, in a run's
environment.

Attempts are forked from one process that has imported torch once. Each but the last is killed by SIGKILL at a random
moment, and waits for that after its part of the steps; a line on stdout says what its optimizer had done and what its
snapshot is of.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import random
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch._dynamo  # noqa: F401  the first optimizer imports it; here all attempts have it
from torch.optim.optimizer import register_optimizer_step_post_hook

from trainer.checkpoint.memory import snapshots
from trainer.gpt.config import Place, parse
from trainer.gpt.loop import train
from trainer.rank import progress
from trainer.rundir.machine.shm import segment_here
from trainer.rundir.variables import ATTEMPT, MARK

_finished = memoryview(mmap.mmap(-1, 8)).cast("q")
"""The newest step that the optimizer has made, in any attempt. A line of the metrics is written before that."""


class _Until(progress.Progress):
    """It waits for its end once `last` steps are done."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self._last, self._done = last, 0
        register_optimizer_step_post_hook(self._stepped)

    def resume_at(self, step: int) -> None:
        self._done = step

    def step(self, done: int, optimizer: Any = None) -> None:
        self._done = done
        while done >= self._last:
            signal.pause()

    def _stepped(self, *_: Any) -> None:
        _finished[0] = self._done + 1


def _attempt(number: int, flags: list[str], last: int) -> int:
    pid = os.fork()
    if pid == 0:
        progress.install(_Until(last))
        os.environ[ATTEMPT] = str(number)
        os.environ[MARK] = f"{os.environ[MARK].rpartition('.')[0]}.{number}"
        train(parse(flags), Place())
        os._exit(0)
    return pid


def _killed_after(pid: int, seconds: float, ready: Callable[[], bool] = lambda: True) -> int:
    """Its wait status: once `ready`, it had that long, if it needed it."""
    fd = os.pidfd_open(pid)
    while not ready() and not select.select([fd], [], [], 0.002)[0]:
        pass
    if not select.select([fd], [], [], seconds)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(fd)
    return os.waitpid(pid, 0)[1]


def main(kills: int, seed: int, flags: list[str]) -> None:
    chance = random.Random(seed)
    segment = segment_here()
    assert segment is not None
    steps = parse(flags).steps
    # The attempts are forks: what was imported is looked through and copied by none of them.
    gc.freeze()
    for number in range(kills):
        # One while it comes up or trains; the others, however busy the machine is, while it trains.
        before = snapshots.newest_snapshot(segment)
        trains = (lambda old=before: snapshots.newest_snapshot(segment) != old) if number else (lambda: True)
        status = _killed_after(
            _attempt(number, flags, steps * (number + 1) // (kills + 1)),
            chance.uniform(0.05, 0.4) if not number else chance.uniform(0, 0.1),
            trains,
        )
        print(json.dumps([status, _finished[0], snapshots.newest_snapshot(segment)]), flush=True)
    status = _killed_after(_attempt(kills, flags, steps + 1), 200)
    print(json.dumps([status, _finished[0], snapshots.newest_snapshot(segment)]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
