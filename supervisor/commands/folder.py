"""The folder of a new run: private, and removed again if the run does not begin."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from supervisor.errors import HeldByAnother, Refusal
from supervisor.run.folder.lock import is_held
from supervisor.run.folder.ownership import make_private
from trainer.rundir.files.durable import ensure_dir
from trainer.rundir.layout import RunDir

_LOCKS = ("lock", "lock.json")


class Folder:
    """After the block, nothing is left of a launch that did not begin, whatever stopped it."""

    def __init__(self) -> None:
        self._run: RunDir | None = None
        self._missing: list[Path] = []

    def make(self, run: RunDir) -> None:
        """The run has an empty folder. Refusal if the folder is not empty, or cannot be made."""
        self._missing = [path for path in (run.path, *run.path.parents) if not path.exists()]
        try:
            ensure_dir(run.path)
            if any(path.name not in _LOCKS for path in run.path.iterdir()):
                raise Refusal(f"{run.path} is not empty and no run of supervise; use another --run-dir")
            self._run = run
            make_private(run.path)
        except FileExistsError:
            file = next((path for path in (run.path, *run.path.parents) if path.is_file()), run.path)
            raise Refusal(f"{file} is a file, and a folder is needed there; see --run-dir") from None
        except OSError as error:
            raise Refusal(f"{run.path} cannot be used: {error.strerror or error}") from None

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, HeldByAnother):
            return
        run = self._run
        begun = run is not None and (run.events.exists() or run.supervisor_log.exists())
        if run is not None and not begun and not is_held(run):
            for path in [run.lock, run.holder, run.run_json]:
                path.unlink(missing_ok=True)
            shutil.rmtree(run.faults, ignore_errors=True)
        for path in self._missing:
            # A folder that is not empty belongs to somebody.
            with contextlib.suppress(OSError):
                path.rmdir()
        if run is not None and not begun and isinstance(error, OSError):
            raise Refusal(f"{error.filename or run.path} cannot be written: {error.strerror or error}") from None
