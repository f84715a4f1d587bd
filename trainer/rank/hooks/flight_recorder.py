"""The dumps of NCCL's flight recorder go to the attempt's folder, where the supervisor reads them.

The variables are torch's own (read in torch 2.13; `c10d/FlightRecorder.cpp`). Whether it records, and dumps when a
collective times out, is left as the user or torch has it. What the user has set stays.
"""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import metadata
from pathlib import Path

from ...rundir.layout import AttemptDir

_PREFIXES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
"""The name since torch 2.13, which warns about the other one, and the name before."""
_RENAMED = (2, 13)
_SIZES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_PIPE = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE"
_DRIVER = Path("/dev/nvidiactl")


def follow(attempt: AttemptDir, pipes: str = "") -> None:
    """This rank's dumps go to `attempt`. Without NVIDIA's driver there is no NCCL, and nothing is set. A rank of a
    standby has its pipe where `pipes` says until move(): the folder of its attempt is not there yet, and torch ends the
    process where it cannot make the pipe."""
    if not _DRIVER.exists():
        return
    if not any(name in os.environ for name in _PREFIXES):
        os.environ[_PREFIXES[0] if _version() >= _RENAMED else _PREFIXES[1]] = attempt.traces
    if any(name in os.environ for name in _SIZES):
        # torch makes the pipe only where its recorder was turned on by name.
        os.environ.setdefault(_PIPE, pipes or attempt.traces)


def move(rank: int, pipes: str, attempt: AttemptDir) -> None:
    """The pipe of a rank that has followed with `pipes` is in `attempt`, which exists: if torch has made it, or when it
    does. On several nodes the attempt is on another disk: there the pipe stays, and nobody can ask for a dump."""
    if os.environ.get(_PIPE) == pipes:
        os.environ[_PIPE] = attempt.traces
        with contextlib.suppress(OSError):
            Path(f"{pipes}{rank}.pipe").rename(attempt.trace_pipe(rank))


def _version() -> tuple[int, ...]:
    torch = sys.modules.get("torch")
    try:
        text = torch.__version__ if torch is not None else metadata.version("torch")
        return tuple(map(int, text.split(".")[:2]))
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return _RENAMED
