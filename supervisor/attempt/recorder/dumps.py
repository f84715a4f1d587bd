"""The dumps of torch's flight recorders in the attempt's folder: each rank's newest collectives.

torch writes them when a collective of NCCL has timed out, if its recorder is on; trainer/rank points their prefix here.
A recorder that the user has turned on also has a pipe, through which a dump can be asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from supervisor.attempt.recorder.plain_pickle import loads
from supervisor.core.evidence import Odd
from supervisor.core.hangs.collectives import odd
from trainer.rundir.files.untrusted_files import read_file
from trainer.rundir.layout import AttemptDir

_ANSWER = 1.5
"""Seconds that a dump takes at most. The thread of torch that writes it looks at its pipe once a second."""


def read(folder: AttemptDir, ranks: Iterable[int]) -> Odd | None:
    """The rank that stands apart by the dumps so far. None if there are too few."""
    traces = {}
    for rank in ranks:
        with contextlib.suppress(OSError, ValueError):
            data = read_file(folder.trace(rank))
            traces[rank] = json.loads(data) if data.lstrip()[:1] == b"{" else loads(data)
    return odd(traces) if len(traces) > 1 else None


def ask(folder: AttemptDir, ranks: Iterable[int]) -> None:
    """Each of `ranks` that has a pipe has written a dump, unless that takes too long."""
    asked = [rank for rank in ranks if _write(folder.trace_pipe(rank))]
    until = time.monotonic() + _ANSWER
    while asked and not all(folder.trace(rank).exists() for rank in asked) and time.monotonic() < until:
        time.sleep(0.02)


def _write(pipe: Path) -> bool:
    try:
        fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode) and os.write(fd, b"1") == 1
    except OSError:
        return False
    finally:
        os.close(fd)
