"""Lightning's CSVLogger, as read in 2.6: a relaunch keeps the rows of `metrics.csv` that it does not write again.

By itself it removes the file when it finds one, so a relaunch into the same folder would lose the curve.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from ...rundir.files.durable import replace_soon
from .curve import cut
from .going_on import GoingOn

_PARTS = "_check_log_dir_exists", "_rewrite_with_new_header", "save", "log_metrics"


def fits(module: ModuleType) -> bool:
    """Whether this version writes its rows as we know it. An older one keeps all rows in memory."""
    return all(hasattr(getattr(module, "_ExperimentWriter", None), part) for part in _PARTS)


def hook(module: ModuleType, going_on: GoingOn) -> None:
    """Without a known version nothing is done, and each attempt has a folder of its own."""
    if not fits(module):
        return
    kind: Any = module._ExperimentWriter
    check, save, log = kind._check_log_dir_exists, kind.save, kind.log_metrics

    @functools.wraps(check)
    def check_log_dir_exists(self: Any) -> None:
        going_on.before_saves(functools.partial(_saved, self, save))
        if not going_on.later or not os.path.isfile(self.metrics_file_path):
            check(self)
            return
        try:
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys[:] = next(csv.reader(file), [])
        except (OSError, ValueError, csv.Error):
            check(self)
            return
        self._supervise_cut = True

    @functools.wraps(save)
    def saved(self: Any) -> None:
        if getattr(self, "_supervise_cut", False) and self.metrics:
            with contextlib.suppress(Exception):  # its rows may be anything
                self._supervise_cut = not _drop(Path(self.metrics_file_path), self.metrics, going_on)
        save(self)

    @functools.wraps(log)
    def logged(self: Any, *args: Any, **kwargs: Any) -> None:
        log(self, *args, **kwargs)
        if going_on.just_saved():
            self.save()

    kind._check_log_dir_exists, kind.save, kind.log_metrics = check_log_dir_exists, saved, logged


def _saved(writer: Any, save: Any) -> None:
    with contextlib.suppress(Exception):
        writer.save()


def _drop(path: Path, new: list[dict[str, Any]], going_on: GoingOn) -> bool:
    """Drops the rows of the file that come again. True if it is settled which ones."""
    at = going_on.position()
    if at is None:
        return False
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows, header = list(reader), list(reader.fieldnames or ())
    steps = [int(float(row["step"])) for row in rows]
    start = cut([("row", step) for step in steps], "row", min(int(row["step"]) for row in new), at)
    if start is not None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, header)
        writer.writeheader()
        writer.writerows(row for row, step in zip(rows, steps, strict=True) if step < start)
        mode = path.stat().st_mode
        replace_soon(path, text.getvalue().encode())
        path.chmod(mode)
    return True
