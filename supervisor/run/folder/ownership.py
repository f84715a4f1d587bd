"""Only the owner may steer a run, and only in a folder that nobody else could have prepared.

The system's permissions decide who may read a run. Only the owner of its folder may launch, resume, stop or clean it,
or give it a fault. And no name of the run may be a link: through a link a supervisor would write, truncate or remove
the link's target.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from supervisor.errors import Refusal
from trainer.rundir.layout import RunDir

_OTHERS_WRITE = 0o022


def own(path: Path) -> None:
    """Refusal unless the folder `path` belongs to this user."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise Refusal(
            f"{path} belongs to uid {found.st_uid}, and only its owner steers a run; "
            f"act as that user: sudo -u '#{found.st_uid}' supervise …, or use another --run-dir"
        )


def make_private(path: Path) -> None:
    """Only the owner can enter the folder `path`, which is still empty. Refusal if it belongs to somebody else."""
    own(path)
    with contextlib.suppress(OSError):  # A file system without modes has other ways to keep people out.
        path.chmod(0o700)


def vet(run: RunDir) -> None:
    """Refusal unless the folder of `run` belongs to this user, nobody else can write there, and none of its names is a
    link."""
    own(run.path)
    if run.path.stat().st_mode & _OTHERS_WRITE:
        raise Refusal(
            f"{run.path} can be written by other users, who may have changed what would be run; "
            f"look at it, then: chmod go-w {run.path}"
        )
    asked = (run.stop, run.retry)
    files = (run.run_json, run.events, run.lock, run.holder, *asked, run.metrics, run.supervisor_log, run.modules)
    folders = (run.attempts_folder, run.checkpoints, run.standby, run.faults, run.leaders)
    for path, is_kind, kind in (
        *((path, stat.S_ISREG, "file") for path in files),
        *((path, stat.S_ISDIR, "folder") for path in folders),
    ):
        with contextlib.suppress(FileNotFoundError):
            if not is_kind(path.lstat().st_mode):
                raise Refusal(
                    f"{path} is not a plain {kind}, and may lead anywhere; remove it, or use another --run-dir"
                )
