"""Who may steer a run: its owner, in a folder that nobody else can have laid out for them.

A run is read by whoever the system lets read it. It is launched, resumed, stopped, cleaned or given a fault only by the
user whose folder it is, and only while what lies under the names of a run is the thing itself: through a link in its place,
a supervisor would write, truncate or remove what the link leads to.
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
    """The folder `path` is this user's; else Refusal."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise Refusal(
            f"{path} belongs to uid {found.st_uid}, and only its owner steers a run; "
            f"act as that user: sudo -u '#{found.st_uid}' supervise …, or use another --run-dir"
        )


def make_private(path: Path) -> None:
    """The folder `path`, which holds nothing yet, can be entered by its owner alone; Refusal if it is somebody else's."""
    own(path)
    with contextlib.suppress(OSError):  # a file system without modes has others' ways to keep people out
        path.chmod(0o700)


def vet(run: RunDir) -> None:
    """The folder of `run` is this user's, nobody else can write there, and each of its names is the thing itself; else
    Refusal."""
    own(run.path)
    if run.path.stat().st_mode & _OTHERS_WRITE:
        raise Refusal(
            f"{run.path} can be written by other users, who may have changed what would be run; "
            f"look at it, then: chmod go-w {run.path}"
        )
    files = (run.run_json, run.events, run.lock, run.holder, run.stop, run.metrics, run.supervisor_log, run.modules)
    folders = (run.attempts_folder, run.checkpoints, run.standby, run.faults)
    for path, is_kind, kind in (
        *((path, stat.S_ISREG, "file") for path in files),
        *((path, stat.S_ISDIR, "folder") for path in folders),
    ):
        with contextlib.suppress(FileNotFoundError):
            if not is_kind(path.lstat().st_mode):
                raise Refusal(
                    f"{path} is not a plain {kind}, and may lead anywhere; remove it, or use another --run-dir"
                )
