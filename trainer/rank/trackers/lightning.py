"""Lightning's loggers, under both of its names. A relaunch logs into the same `version_N`, not into the next one, where
LightningCLI finds the configuration that an earlier attempt has saved."""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any

from . import csv_rows
from .going_on import GoingOn


def _versions(module: ModuleType, going_on: GoingOn) -> None:
    """Wraps `_get_next_version`, as read in lightning 2.6. Without it each attempt has a folder of its own, as without
    us."""
    csv_rows.hook(module, going_on)
    for name in ("TensorBoardLogger", *(["CSVLogger"] if csv_rows.fits(module) else [])):
        logger: Any = getattr(module, name, None)
        original = getattr(logger, "__dict__", {}).get("_get_next_version")
        if original is not None:
            logger._get_next_version = _remembered(original, name, going_on)


def _remembered(original: Any, name: str, going_on: GoingOn) -> Any:
    @functools.wraps(original)
    def next_version(self: Any) -> int:
        where = os.path.abspath(os.path.join(str(self.root_dir), str(self.name)))
        chosen = going_on.recall(f"lightning {name} {where}", lambda: str(original(self)))
        return int(chosen) if chosen.isdecimal() else original(self)

    return next_version


def _configuration(module: ModuleType, going_on: GoingOn) -> None:
    """Wraps `SaveConfigCallback.setup`, as read in lightning 2.6. It refuses a folder that has a configuration already:
    without this, each program of LightningCLI would die at its relaunch, before its first step."""
    callback: Any = getattr(module, "SaveConfigCallback", None)
    original, filesystem = getattr(callback, "setup", None), getattr(module, "get_filesystem", None)
    if original is None or filesystem is None:
        return

    @functools.wraps(original)
    def setup(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(self, "save_to_log_dir", True) and not self.already_saved and not self.overwrite:
            # Rank 0 alone looks and writes. The others must agree with it, else they would wait for its answer.
            folder = trainer.log_dir  # None: its logger has none, and the original says so
            path = os.path.join(folder, self.config_filename) if folder else ""
            ours = bool(path) and trainer.is_global_zero and _is_ours(path, filesystem, going_on)
            self.overwrite = trainer.strategy.broadcast(ours)
        original(self, trainer, *args, **kwargs)

    callback.setup = setup


def _is_ours(path: str, filesystem: Any, going_on: GoingOn) -> bool:
    """Whether the configuration at `path` is this run's own: it was not there when the run asked first."""
    first = going_on.recall(f"lightning config {path}", lambda: "" if filesystem(path).isfile(path) else "new")
    return going_on.later and first == "new"


HOOKS = {
    **{
        f"{package}.loggers.{module}": _versions
        for package in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric", "lightning_fabric")
        for module in ("tensorboard", "csv_logs")
    },
    **{f"{package}.cli": _configuration for package in ("lightning.pytorch", "pytorch_lightning")},
}
