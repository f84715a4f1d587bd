"""Lightning's loggers, under both of its names. A relaunch logs into the same `version_N`, not into the next one."""

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


HOOKS = {
    f"{package}.loggers.{module}": _versions
    for package in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric", "lightning_fabric")
    for module in ("tensorboard", "csv_logs")
}
